// A loop shared between the calling thread and helpers from a thread pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
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

// Tasks 0 to count - 1. Each thread first runs a contiguous range of its own, because neighboring tasks mostly read
// neighboring memory, then takes what is left of the others' ranges.
class Loop {
 public:
  using Body = void (*)(const void* context, int64_t task);
  static constexpr int64_t kMaxThreads = 64;

  Loop(Body body, const void* context, int64_t count, int64_t threads)
      : body_(body), context_(context), threads_(threads) {
    for (int64_t i = 0; i < threads; ++i) {
      ranges_[i].next.store(count * i / threads, std::memory_order_relaxed);
      ranges_[i].end = count * (i + 1) / threads;
    }
  }

  void work() {
    const int64_t mine = begun_.fetch_add(1, std::memory_order_relaxed);
    for (int64_t i = 0; i < threads_; ++i) {
      Range& range = ranges_[(mine + i) % threads_];
      for (int64_t task; (task = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;) {
        body_(context_, task);
      }
    }
  }

 private:
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const Body body_;
  const void* const context_;
  const int64_t threads_;
  std::atomic<int64_t> begun_{0};
  Range ranges_[kMaxThreads];
};

// The helpers of one calling thread. They poll for the next loop for kIdleTime after each, because the next one is
// usually near and waking a thread takes longer than many a loop.
class HelperTeam : public std::enable_shared_from_this<HelperTeam> {
 public:
  static HelperTeam& of_this_thread() {
    thread_local const auto team = std::make_shared<HelperTeam>();
    return *team;
  }

  // The caller works too and waits only for helpers that have begun. So a pool whose threads are all busy, even with
  // other callers of this function, delays nothing.
  void run(Pool& pool, Loop& loop, int64_t helpers) {
    loop_ = &loop;
    ticket_.fetch_add(1);
    for (int64_t n = helpers_.load(std::memory_order_relaxed); n < helpers; ++n) {
      helpers_.fetch_add(1, std::memory_order_relaxed);
      pool.schedule([team = shared_from_this()] { team->serve(); });
    }
    loop.work();
    ticket_.fetch_add(1);
    // Either a helper reads the new ticket, or its count in active_ is read here.
    for (int i = 0; active_.load() != 0;) {
      if (++i > kSpins) std::this_thread::yield();
    }
  }

 private:
  void serve() {
    using Clock = std::chrono::steady_clock;
    uint64_t served = 0;
    for (auto deadline = Clock::now() + kIdleTime; Clock::now() < deadline;) {
      const uint64_t ticket = ticket_.load(std::memory_order_acquire);
      if (ticket % 2 == 0 || ticket == served) continue;
      active_.fetch_add(1);
      if (ticket_.load() == ticket) loop_->work();
      active_.fetch_sub(1);
      served = ticket;
      deadline = Clock::now() + kIdleTime;
    }
    helpers_.fetch_sub(1, std::memory_order_relaxed);
  }

  static constexpr std::chrono::microseconds kIdleTime{200};
  static constexpr int kSpins = 10000;  // before yielding the core
  Loop* loop_ = nullptr;
  std::atomic<uint64_t> ticket_{0};  // odd while a loop is offered
  std::atomic<int64_t> helpers_{0}, active_{0};
};

// Runs body(0), ..., body(count - 1), each once, in any order, on `threads` threads at most; returns when all have
// ended. A body must not call this function.
template <class Body>
void parallel_for(Pool& pool, int64_t count, int64_t threads, const Body& body) {
  threads = std::min({count, threads, pool.threads(), Loop::kMaxThreads});
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  Loop loop([](const void* context, int64_t task) { (*static_cast<const Body*>(context))(task); }, &body, count,
            threads);
  HelperTeam::of_this_thread().run(pool, loop, threads - 1);
}

template <class Body>
void parallel_for(Pool& pool, int64_t count, const Body& body) {
  parallel_for(pool, count, count, body);
}

// Returns the number of tasks, 1 to `most`, for `work` divided into tasks of `task_work`.
inline int64_t task_count(int64_t work, int64_t task_work, int64_t most) {
  return std::clamp<int64_t>(work / task_work, 1, std::max<int64_t>(most, 1));
}

}  // namespace gemwright
