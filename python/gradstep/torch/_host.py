"""PyTorch, or an error that says how to get it. Imported before everything else here."""

try:
    import torch
except ImportError as error:
    raise ImportError('gradstep.torch needs PyTorch: pip install "gradstep[torch]"') from error
if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    raise ImportError(
        "gradstep.torch needs a PyTorch whose tensors have the exchange API of DLPack 1.3; "
        f"PyTorch {torch.__version__} does not: pip install -U torch"
    )
