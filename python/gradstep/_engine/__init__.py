"""What carries steps out for every optimizer: checks, structures, memory, formats, windows.

Private. It knows no rule.
"""
