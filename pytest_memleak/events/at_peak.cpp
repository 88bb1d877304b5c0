// See at_peak.h.

#include "at_peak.h"

#include <algorithm>

// Python's own, found in the process: no header of Python is needed to build this.
extern "C" __attribute__((weak)) void* PyGILState_GetThisThreadState();

namespace memleak {
namespace {

thread_local bool inside = false;  // Python that is called here may allocate as well

// A thread that Python does not know never waits for the GIL: its creator may hold it, and wait for the thread.
bool python_may_be_called() {
  return !inside && PyGILState_GetThisThreadState && PyGILState_GetThisThreadState();
}

struct Inside {
  Inside() {
    inside = true;
  }
  ~Inside() {
    inside = false;
  }
};

}  // namespace

AtPeak& at_peak() {
  static AtPeak* const one = new AtPeak();
  return *one;
}

void AtPeak::begin(Here here, int64_t smallest, int64_t level) {
  std::lock_guard<std::mutex> guard(mutex_);
  ++recording_;
  held_.assign(kFirst, Held());
  at_peak_.clear();
  highest_ = level;
  rising_ = true;  // the base alone is a peak
  noticing_ = true;
  smallest_.store(smallest);
  here_.store(here);
}

void AtPeak::end() {
  here_.store(nullptr);
}

void AtPeak::notice(bool on, int64_t level) {
  std::lock_guard<std::mutex> guard(mutex_);
  settle();
  noticing_ = on;
  if (on && level > highest_) {
    highest_ = level;
    rising_ = true;
  }
}

Mark AtPeak::allocated(int64_t bytes, int64_t level) {
  const Here here = here_.load();
  if (!here) {
    return Mark();
  }
  uint32_t place = kUnknown;
  if (bytes < smallest_.load(std::memory_order_relaxed)) {
    place = kSmall;
  } else if (python_may_be_called()) {
    Inside now;
    place = here();
  }
  std::lock_guard<std::mutex> guard(mutex_);
  if (place >= held_.size()) {
    held_.resize(place + 1);
  }
  held_[place].bytes += bytes;
  held_[place].blocks += 1;
  if (noticing_ && level > highest_) {
    highest_ = level;
    rising_ = true;
  }
  return Mark{place, recording_};
}

void AtPeak::released(int64_t bytes, Mark mark) {
  if (!on()) {
    return;
  }
  std::lock_guard<std::mutex> guard(mutex_);
  settle();
  if (mark.recording == recording_ && mark.place < held_.size()) {
    held_[mark.place].bytes -= bytes;
    held_[mark.place].blocks -= 1;
  }
}

// Notes what is alive at a peak: not at every step on the way up, but before the first step down.
void AtPeak::settle() {
  if (rising_) {
    at_peak_ = held_;
    rising_ = false;
  }
}

int64_t AtPeak::read(Held* out, int64_t room, int64_t* level) {
  std::lock_guard<std::mutex> guard(mutex_);
  settle();
  *level = highest_;
  const int64_t count = static_cast<int64_t>(at_peak_.size());
  std::copy_n(at_peak_.begin(), std::min(count, room), out);
  return count;
}

void AtPeak::watch(Reached reached, int64_t level) {
  reached_.store(reached);
  wake_at_.store(reached ? level : INT64_MAX);
}

void AtPeak::reached(int64_t level, int64_t asked, bool refused) {
  if (!refused && level < wake_at_.load(std::memory_order_relaxed)) {
    return;
  }
  const Reached reached = reached_.load();
  if (reached && python_may_be_called()) {
    Inside now;
    wake_at_.store(reached(level, asked, refused));
  }
}

}  // namespace memleak
