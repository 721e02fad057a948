// A thread block of the emulator: fibers that meet at barriers and shuffles, scheduled one at a time. See
// cuda_runtime.h.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kAllLanes = 0xffffffffu;

// Where in the sources a thread waits, and for whom.
struct Wait {
  enum Kind { kNothing, kBlock, kWarp } kind = kNothing;
  const char* what = "";
  const char* file = "";
  int line = 0;

  bool operator==(const Wait& o) const { return kind == o.kind && line == o.line && !std::strcmp(file, o.file); }
};

struct Thread {
  Fiber fiber;
  dim3 index;
  Wait wait;
  unsigned char lane[2][16];  // what it shows to its warp, in this shuffle and in the one before
  unsigned shuffles = 0;

  bool waits() const { return wait.kind != Wait::kNothing; }
};

// The block that runs. Threads are numbered as in CUDA, x fastest.
class Block {
 public:
  static Block& current() {
    static Block block;
    return block;
  }

  bool reversed = false;

  // One warp after the other up to the next barrier of the block: as far apart as they can be.
  void run(dim3 size, const std::function<void()>& body) {
    begin(size, body);
    const unsigned warps = (count_ + kWarp - 1) / kWarp;
    while (live_ > 0) {
      for (unsigned w = 0; w < warps; ++w) run_warp((reversed ? warps - 1 - w : w) * kWarp);
      if (live_ > 0) release(0, count_, count_, "threads");
    }
  }

  void wait(const Wait& wait) {
    threads_[running_].wait = wait;
    Fiber::yield();
  }

  // The value that lane source(own lane) shows, the own value where there is no such lane.
  template <typename T, typename Source>
  T exchange(unsigned mask, T value, const Wait& at, Source source) {
    static_assert(sizeof(T) <= sizeof(Thread::lane[0]), "too large for a shuffle");
    if (mask != kAllLanes) fail(at, "is emulated for whole warps only");
    Thread& self = threads_[running_];
    const unsigned number = running_, slot = self.shuffles++ % 2;
    std::memcpy(self.lane[slot], &value, sizeof(T));
    wait(at);
    const unsigned from = source(number % kWarp);
    const unsigned other = from < kWarp ? number - number % kWarp + from : number;
    std::memcpy(&value, threads_[other].lane[slot], sizeof(T));
    return value;
  }

 private:
  void begin(dim3 size, const std::function<void()>& body) {
    count_ = live_ = size.x * size.y * size.z;
    if (threads_.size() < count_) threads_.resize(count_);
    for (unsigned i = 0; i < count_; ++i) {
      Thread& t = threads_[i];
      t.index = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
      t.wait = Wait{};
      t.shuffles = 0;
      t.fiber.start(body);
    }
    error_.clear();
  }

  void run_warp(unsigned first) {
    const unsigned lanes = std::min(kWarp, count_ - first);
    for (bool shuffle = true; shuffle;) {
      for (unsigned i = 0; i < lanes; ++i) resume(first + (reversed ? lanes - 1 - i : i));
      shuffle = false;
      for (unsigned i = 0; i < lanes; ++i) shuffle = shuffle || threads_[first + i].wait.kind == Wait::kWarp;
      if (shuffle) release(first, lanes, kWarp, "lanes");
    }
  }

  void resume(unsigned i) {
    Thread& t = threads_[i];
    if (t.fiber.done() || t.waits()) return;
    running_ = i;
    threadIdx = t.index;
    t.fiber.resume();
    if (!error_.empty()) abandon(error_);
    if (t.fiber.done()) --live_;
  }

  // Lets `size` threads go on, all of which must wait at one place; none runs any more, some wait.
  void release(unsigned first, unsigned size, unsigned wanted, const char* unit) {
    const auto begin = threads_.begin() + first, end = begin + size;
    const Wait at = std::find_if(begin, end, [](const Thread& t) { return t.waits(); })->wait;
    const auto arrived = std::count_if(begin, end, [&at](const Thread& t) { return t.wait == at; });
    if (arrived != wanted) {
      abandon(describe(at, "reached by " + std::to_string(arrived) + " of " + std::to_string(wanted) + " " + unit));
    }
    std::for_each(begin, end, [](Thread& t) { t.wait = Wait{}; });
  }

  // From within a thread, which cannot throw through its stack.
  void fail(const Wait& at, const std::string& what) {
    error_ = describe(at, what);
    Fiber::yield();
  }

  std::string describe(const Wait& at, const std::string& what) const {
    return std::string(at.what) + " at " + at.file + ":" + std::to_string(at.line) + " " + what + " in block (" +
           std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ")";
  }

  // The other threads never end: their stacks go, the kernels' frames hold nothing that needs a destructor.
  [[noreturn]] void abandon(const std::string& error) {
    threads_.clear();
    throw std::runtime_error(error);
  }

  std::vector<Thread> threads_;
  unsigned count_ = 0, live_ = 0, running_ = 0;
  std::string error_;
};

}  // namespace emulator
