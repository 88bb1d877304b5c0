// Samples the process's committed memory without the GIL, so that long calls into native code are seen, too.
//
// Built together with cpu_allocator.cpp. The thread is detached and reaches nothing that a static destructor takes away.

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>

namespace {

// The most pages since the last look, and above them the number of that look: a sample that was read before a look and
// comes after it is of a time that has been told already.
constexpr int kPages = 40;
constexpr uint64_t kAllPages = (uint64_t{1} << kPages) - 1;
std::atomic<uint64_t> highest{0};
std::atomic<uint64_t> turn_now{0};  // odd while a sampler runs; a sampler stops when it is no longer its turn

uint64_t look_of(uint64_t seen) {
  return seen >> kPages;
}

void raise_to(uint64_t pages, uint64_t look) {
  uint64_t seen = highest.load();
  while (look_of(seen) == look && pages > (seen & kAllPages) &&
         !highest.compare_exchange_weak(seen, look << kPages | pages)) {
  }
}

void stop() {
  turn_now.store((turn_now.load() + 1) & ~uint64_t{1});
}

int open_statm() {
  return open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
}

// Pages, or less than 0 if there is nothing to read.
int64_t read_statm(int file) {
  char text[128];
  const ssize_t length = pread(file, text, sizeof(text) - 1, 0);
  if (length <= 0) {
    return -1;
  }
  text[length] = '\0';
  long long size = 0, resident = 0, shared = 0;
  if (std::sscanf(text, "%lld %lld %lld", &size, &resident, &shared) != 3) {
    return -1;
  }
  return std::max<int64_t>(0, resident - shared);
}

void sample_host(uint64_t turn, int64_t period_us) {
  // Signals are for the program's own threads.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  const int file = open_statm();
  while (file >= 0 && turn_now.load() == turn) {
    const uint64_t look = look_of(highest.load());
    if (const int64_t pages = read_statm(file); pages > 0) {
      raise_to(pages, look);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(period_us));
  }
  if (file >= 0) {
    close(file);
  }
}

int64_t pages_now() {
  const int file = open_statm();
  if (file < 0) {
    return -1;
  }
  const int64_t pages = read_statm(file);
  close(file);
  return pages;
}

int64_t in_bytes(int64_t pages) {
  static const int64_t page = sysconf(_SC_PAGESIZE);
  return pages * page;
}

}  // namespace

extern "C" {

int64_t memleak_host_now() {
  const int64_t pages = pages_now();
  return pages < 0 ? -1 : in_bytes(pages);
}

// 0: sampling. 1: no thread could be started.
int memleak_host_begin(int64_t period_us) {
  // In a forked child there is no such thread.
  static const int registered = pthread_atfork(nullptr, nullptr, &stop);
  (void)registered;
  const uint64_t turn = (turn_now.load() + 1) | 1;
  turn_now.store(turn);
  try {
    std::thread(sample_host, turn, period_us).detach();
  } catch (...) {
    turn_now.store(turn + 1);
    return 1;
  }
  return 0;
}

void memleak_host_end() {
  stop();
}

int64_t memleak_host_take_peak() {
  const uint64_t now = std::max<int64_t>(0, pages_now());
  uint64_t seen = highest.load();
  while (!highest.compare_exchange_weak(seen, (look_of(seen) + 1) << kPages | now)) {
  }
  return in_bytes(std::max(seen & kAllPages, now));
}
}
