// A team of threads for work that comes in thousands of short parallel phases, too short to start threads for each.
//
// torch's pool starts the team once. Whoever arrives first leads; the others wait in a loop for phases. A phase is
// `items` numbered items, claimed one by one by an atomic exchange. The leader claims what no one else did and waits
// only for items that another thread is working on, so the team never deadlocks, however few threads really come (in
// a nested parallel region: one). Each item is computed alike whoever does it: bits do not depend on the threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

namespace chaos_ext {

class Team {
 public:
  // Runs lead(team) once; team.phase may be called in it. `items` is the same for all phases.
  template <typename Lead>
  static void run(int64_t items, const Lead& lead) {
    Team team(items, std::min<int64_t>(items, torch::stable::get_num_threads()));
    torch::stable::parallel_for(0, team.size_, 1, [&](int64_t, int64_t) {
      const int64_t rank = team.arrived_.fetch_add(1);
      if (rank > 0) return team.help(rank);
      const Finish finish{team};
      lead(team);
    });
  }

  // Calls body(item) for every item, each on some thread; returns when all are done.
  void phase(const std::function<void(int64_t)>& body) {
    body_ = &body;
    open_.store(items_, std::memory_order_relaxed);
    const int64_t number = number_.load(std::memory_order_relaxed) + 1;
    number_.store(number, std::memory_order_release);
    work(0, number);
    for (int64_t idle = 0; open_.load(std::memory_order_acquire) != 0; ++idle) wait(idle);
  }

 private:
  struct alignas(64) Claim {
    std::atomic<int64_t> number{0};  // of the last phase in which the item was claimed
  };

  struct Finish {
    Team& team;
    ~Finish() { team.number_.store(-1, std::memory_order_release); }
  };

  Team(int64_t items, int64_t size) : items_(items), size_(size), claims_(new Claim[items]) {}

  void help(int64_t rank) {
    int64_t seen = 0;
    for (int64_t idle = 0;; ++idle) {
      const int64_t number = number_.load(std::memory_order_acquire);
      if (number < 0) return;
      if (number != seen) {
        work(rank, seen = number);
        idle = 0;
      } else {
        wait(idle);
      }
    }
  }

  // Starts at this thread's share of the items, so that a thread meets the same data in every phase.
  void work(int64_t rank, int64_t number) {
    for (int64_t x = 0; x < items_; ++x) {
      const int64_t item = (x + rank * items_ / size_) % items_;
      int64_t previous = number - 1;
      if (!claims_[item].number.compare_exchange_strong(previous, number, std::memory_order_acquire)) continue;
      (*body_)(item);
      open_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Soon gives the processor away: whom this thread waits for may have none.
  static void wait(int64_t idle) {
    if (idle > kPauses) return std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  static constexpr int64_t kPauses = 20000;

  const int64_t items_, size_;
  const std::unique_ptr<Claim[]> claims_;
  const std::function<void(int64_t)>* body_ = nullptr;
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int64_t> number_{0};  // of the phase; -1: no more
  alignas(64) std::atomic<int64_t> open_{0};    // items of the phase that are not done
};

}  // namespace chaos_ext
