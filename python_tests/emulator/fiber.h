// A user-space thread with its own stack, switched by ucontext and known to AddressSanitizer. The scheduler resumes it,
// it runs until it yields, and control is back at the scheduler: one OS thread, so a run is deterministic.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

// One side of a switch, for AddressSanitizer: which stack to expect after it. Nothing without the sanitizer.
struct StackNote {
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  std::size_t size = 0;

  // Before leaving the stack of *this for that of `to`; a fiber that ends keeps nothing.
  void leave_for([[maybe_unused]] const StackNote& to, [[maybe_unused]] bool for_ever) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake_stack, to.bottom, to.size);
#endif
  }

  // After arriving on the stack of *this; `from` learns where its own stack lies.
  void arrived([[maybe_unused]] StackNote& from) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &from.bottom, &from.size);
#endif
  }
};

class Fiber {
 public:
  Fiber() : stack_(new char[kStackBytes]) {
    note_.bottom = stack_.get();
    note_.size = kStackBytes;
  }

  // Makes the next resume() call body on an empty stack.
  void start(const std::function<void()>& body) {
    body_ = &body;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::entry, 0);
    note_.fake_stack = nullptr;
    done_ = false;
#if defined(__SANITIZE_ADDRESS__)
    // The sanitizer would forget the redzones of this stack at every switch to it: once, here, is right.
    __asan_unpoison_memory_region(stack_.get(), kStackBytes);
    context_.uc_stack.ss_size = 0;
#endif
  }

  // From the scheduler: runs the fiber until it yields or ends.
  void resume() {
    current_ = this;
    scheduler_note_.leave_for(note_, false);
    swapcontext(&scheduler_, &context_);
    StackNote ignored;
    scheduler_note_.arrived(ignored);
    current_ = nullptr;
  }

  // From the running fiber: back to the scheduler.
  static void yield() {
    Fiber& self = *current_;
    self.note_.leave_for(scheduler_note_, self.done_);
    swapcontext(&self.context_, &scheduler_);
    self.note_.arrived(scheduler_note_);
  }

  bool done() const { return done_; }

 private:
  static constexpr std::size_t kStackBytes = std::size_t{256} << 10;  // touched as far as it is used

  static void entry() {
    current_->note_.arrived(scheduler_note_);
    (*current_->body_)();
    current_->done_ = true;
    yield();
  }

  std::unique_ptr<char[]> stack_;
  const std::function<void()>* body_ = nullptr;
  ucontext_t context_{};
  StackNote note_;
  bool done_ = true;

  static inline Fiber* current_ = nullptr;
  static inline ucontext_t scheduler_;
  static inline StackNote scheduler_note_;
};

}  // namespace emulator
