// A loop shared between the calling thread and a pool.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

namespace gemwright {

class Pool {
 public:
  virtual ~Pool() = default;
  virtual int64_t threads() const = 0;
  virtual void schedule(std::function<void()> task) = 0;
};

// Runs body(0), ..., body(count - 1), each once, in any order; returns when all have ended.
//
// The caller works too and waits only for parts that another thread has begun, so a pool whose threads are all
// busy, even with callers of this function, delays nothing.
template <class Body>
void parallel_for(Pool& pool, int64_t count, const Body& body) {
  if (count <= 1 || pool.threads() <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  const auto state = std::make_shared<State>();  // a task may start after the loop has ended
  const auto work = [state, count, &body] {
    for (int64_t i; (i = state->next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      body(i);
      state->done.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t helpers = (pool.threads() < count ? pool.threads() : count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.schedule(work);
  work();
  while (state->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

}  // namespace gemwright
