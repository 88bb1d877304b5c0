// Samples the process's committed memory without the GIL, so that long calls into native code are seen, too.
//
// Built together with cpu_allocator.cpp. The thread is detached and reaches nothing that a static destructor takes away.

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>

namespace {

std::atomic<int64_t> highest{0};
std::atomic<uint64_t> turn_now{0};  // odd while a sampler runs; a sampler stops when it is no longer its turn

void raise_to(int64_t level) {
  int64_t seen = highest.load(std::memory_order_relaxed);
  while (level > seen && !highest.compare_exchange_weak(seen, level)) {
  }
}

void stop() {
  turn_now.store((turn_now.load() + 1) & ~uint64_t{1});
}

int open_statm() {
  return open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
}

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
  static const int64_t page = sysconf(_SC_PAGESIZE);
  return (resident - shared) * page;
}

void sample_host(uint64_t turn, int64_t period_us) {
  // Signals are for the program's own threads.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  const int file = open_statm();
  while (file >= 0 && turn_now.load() == turn) {
    raise_to(read_statm(file));
    std::this_thread::sleep_for(std::chrono::microseconds(period_us));
  }
  if (file >= 0) {
    close(file);
  }
}

}  // namespace

extern "C" {

int64_t memleak_host_now() {
  const int file = open_statm();
  if (file < 0) {
    return -1;
  }
  const int64_t bytes = read_statm(file);
  close(file);
  return bytes;
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
  const int64_t now = memleak_host_now();
  raise_to(now);
  return highest.exchange(now);
}
}
