#include "row_jobs.hpp"

#include <algorithm>
#include <cstring>

namespace gradstep {
namespace {

template <class T>
void add_up(char* sum, char* const* first, char* const* last, std::int64_t size) {
  T* const to = reinterpret_cast<T*>(sum);
  std::memcpy(sum, *first, static_cast<std::size_t>(size) * sizeof(T));
  while (++first != last) {
    const T* const from = reinterpret_cast<const T*>(*first);
    for (std::int64_t i = 0; i < size; ++i) to[i] += from[i];
  }
}

char* at(void* array, std::int64_t bytes) { return static_cast<char*>(array) + bytes; }

std::int64_t bytes_of(const Job& job) { return job.size * job.item_size; }

}  // namespace

void RowJobs::clear(bool merges) {
  merges_ = merges;
  jobs_.clear();
  first_jobs_.clear();
  sums_.clear();
  summed_.clear();
  needed_ = 0;
}

std::optional<WrongIndex> RowJobs::add(const Job& whole, std::int64_t rows, const RowIndices& indices) {
  if (const auto wrong = read(indices, rows)) return wrong;
  const std::size_t first_job = jobs_.size();
  first_jobs_.push_back(count());
  Job job = whole;
  job.size = rows == 0 ? 0 : whole.size / rows;
  if (job.size == 0) return std::nullopt;
  const std::int64_t row_bytes = bytes_of(job);
  for (auto place = places_.begin(); place != places_.end();) {
    const auto first = place;
    while (++place != places_.end() && place->row == first->row) continue;
    const std::int64_t offset = first->row * row_bytes;
    job.buffers.param = at(whole.buffers.param, offset);
    for (int i = 0; i < max_states; ++i)
      if (whole.buffers.states[i]) job.buffers.states[i] = at(whole.buffers.states[i], offset);
    if (place - first == 1) {
      job.buffers.grad = at(whole.buffers.grad, first->position * row_bytes);
      if (merges_ && jobs_.size() > first_job) {
        Job& last = jobs_.back();
        if (at(last.buffers.param, bytes_of(last)) == job.buffers.param && last.buffers.grad &&
            at(last.buffers.grad, bytes_of(last)) == job.buffers.grad) {
          last.size += job.size;
          continue;
        }
      }
    } else {
      job.buffers.grad = nullptr;  // sum() knows
      const std::size_t first_summed = summed_.size();
      for (auto one = first; one != place; ++one) summed_.push_back(at(whole.buffers.grad, one->position * row_bytes));
      sums_.push_back({jobs_.size(), first_summed, summed_.size()});
      needed_ += static_cast<std::size_t>(row_bytes);
    }
    jobs_.push_back(job);
  }
  return std::nullopt;
}

void RowJobs::sum(int threads, Denormals denormals) {
  if (sums_.empty()) return;
  constexpr std::size_t alignment = sizeof(double);
  const std::size_t room = needed_ + alignment * sums_.size();
  if (room > scratch_size_) {
    scratch_size_ = 0;
    scratch_.reset(new char[room]);
    scratch_size_ = room;
  }
  char* free = scratch_.get();
  std::int64_t elements = 0;
  for (const Sum& sum : sums_) {
    Job& job = jobs_[sum.job];
    const auto bytes = static_cast<std::size_t>(bytes_of(job));
    job.buffers.grad = free;
    free += (bytes + alignment - 1) / alignment * alignment;
    elements += job.size * static_cast<std::int64_t>(sum.last - sum.first);
  }
  const auto count = static_cast<std::int64_t>(sums_.size());
  for_each(count, elements / count, threads, denormals, [&](std::int64_t i) {
    const Sum& sum = sums_[static_cast<std::size_t>(i)];
    const Job& job = jobs_[sum.job];
    (job.item_size == 4 ? add_up<float> : add_up<double>)(static_cast<char*>(job.buffers.grad),
                                                          summed_.data() + sum.first, summed_.data() + sum.last,
                                                          job.size);
  });
}

void RowJobs::zero_summed() const {
  for (const Sum& sum : sums_)
    for (std::size_t i = sum.first; i < sum.last; ++i)
      std::memset(summed_[i], 0, static_cast<std::size_t>(bytes_of(jobs_[sum.job])));
}

std::int64_t RowJobs::owner(std::int64_t job) const {
  return std::upper_bound(first_jobs_.begin(), first_jobs_.end(), job) - first_jobs_.begin() - 1;
}

// Every index is read once: what is checked is what is used, even where another thread writes to the array.
std::optional<WrongIndex> RowJobs::read(const RowIndices& indices, std::int64_t rows) {
  places_.resize(static_cast<std::size_t>(indices.count));
  const auto read_all = [&](const auto* from) -> std::optional<WrongIndex> {
    bool sorted = true;
    std::int64_t before = 0;
    for (std::int64_t i = 0; i < indices.count; ++i) {
      const std::int64_t row = from[i];
      if (row < 0 || row >= rows) return WrongIndex{i, row};
      places_[static_cast<std::size_t>(i)] = {row, i};
      sorted &= row >= before;
      before = row;
    }
    if (!sorted) sort(rows);
    return std::nullopt;
  };
  return indices.wide ? read_all(static_cast<const std::int64_t*>(indices.data))
                      : read_all(static_cast<const std::int32_t*>(indices.data));
}

// By one byte of the row after the other, the lowest first, each time stably.
void RowJobs::sort(std::int64_t rows) {
  room_.resize(places_.size());
  for (int shift = 0; shift < 63 && (rows - 1) >> shift > 0; shift += 8) {
    const auto digit = [shift](const Place& place) { return static_cast<std::size_t>(place.row >> shift & 255); };
    std::size_t starts[257] = {};
    for (const Place& place : places_) ++starts[digit(place) + 1];
    for (int i = 0; i < 256; ++i) starts[i + 1] += starts[i];
    for (const Place& place : places_) room_[starts[digit(place)]++] = place;
    places_.swap(room_);
  }
}

}  // namespace gradstep
