// What is alive when most is, by the place in the program that allocated it.

#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

namespace memleak {

// Called with the GIL. The number of the place that the program is at.
using Here = uint32_t (*)();
// Called with the GIL: so much is held now, with the block that was just asked for (or refused). Returns the level at
// which to be called again.
using Reached = int64_t (*)(int64_t level, int64_t asked, int refused);

// A block that was there before the recording began; one that no Python thread allocated; one that is not worth its
// place. As in places.py.
constexpr uint32_t kBefore = 0, kUnknown = 1, kSmall = 2, kFirst = 3;

struct Mark {
  uint32_t place = kBefore;
  uint32_t recording = 0;  // which one: numbers of an earlier recording mean nothing
};

struct Held {
  int64_t bytes = 0;
  int64_t blocks = 0;
};

class AtPeak {
 public:
  bool on() const {
    return here_.load(std::memory_order_relaxed) != nullptr;
  }
  void begin(Here here, int64_t smallest, int64_t level);
  void end();
  // While it is not noticing, what is allocated belongs to the base, and no level is a peak.
  void notice(bool on, int64_t level);
  Mark allocated(int64_t bytes, int64_t level);
  void released(int64_t bytes, Mark mark);
  // The place that a block was marked with, by this recording or none.
  uint32_t place_of(Mark mark) {
    std::lock_guard<std::mutex> guard(mutex_);
    return mark.recording == recording_ ? mark.place : kBefore;
  }
  int64_t read(Held* out, int64_t room, int64_t* level);

  // So that a child process finds it free.
  std::mutex& mutex() {
    return mutex_;
  }

  void watch(Reached reached, int64_t level);
  void reached(int64_t level, int64_t asked, bool refused);

 private:
  void settle();

  std::atomic<Here> here_{nullptr};
  std::atomic<int64_t> smallest_{0};
  std::mutex mutex_;
  uint32_t recording_ = 0;
  bool noticing_ = false;
  bool rising_ = false;
  int64_t highest_ = 0;
  std::vector<Held> held_;
  std::vector<Held> at_peak_;

  std::atomic<Reached> reached_{nullptr};
  std::atomic<int64_t> wake_at_{INT64_MAX};
};

AtPeak& at_peak();

}  // namespace memleak
