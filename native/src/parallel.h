// A loop shared between the calling thread and helpers out of a pool.
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

// Parts 0 to count - 1. Each thread takes those of a stretch of its own, one after the other, as neighbours mostly lie
// side by side in memory, and then what others have left of theirs.
class Loop {
 public:
  using Body = void (*)(const void* context, int64_t part);
  static constexpr int64_t kMostThreads = 64;

  Loop(Body body, const void* context, int64_t count, int64_t threads)
      : body_(body), context_(context), threads_(threads) {
    for (int64_t i = 0; i < threads; ++i) {
      stretches_[i].next.store(count * i / threads, std::memory_order_relaxed);
      stretches_[i].end = count * (i + 1) / threads;
    }
  }

  void work() {
    const int64_t mine = begun_.fetch_add(1, std::memory_order_relaxed);
    for (int64_t i = 0; i < threads_; ++i) {
      Stretch& stretch = stretches_[(mine + i) % threads_];
      for (int64_t part; (part = stretch.next.fetch_add(1, std::memory_order_relaxed)) < stretch.end;) {
        body_(context_, part);
      }
    }
  }

 private:
  struct alignas(64) Stretch {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const Body body_;
  const void* const context_;
  const int64_t threads_;
  std::atomic<int64_t> begun_{0};
  Stretch stretches_[kMostThreads];
};

// The helpers of one calling thread. They stay for a moment after each loop, looking for the next, which mostly is
// near: to wake a thread takes longer than many a loop.
class Crew : public std::enable_shared_from_this<Crew> {
 public:
  static Crew& mine() {
    thread_local const auto crew = std::make_shared<Crew>();
    return *crew;
  }

  // The caller works too and waits only for helpers that are at work, so a pool whose threads are all busy, even with
  // callers of this function, delays nothing.
  void run(Pool& pool, Loop& loop, int64_t helpers) {
    loop_ = &loop;
    ticket_.fetch_add(1);
    for (int64_t n = members_.load(std::memory_order_relaxed); n < helpers; ++n) {
      members_.fetch_add(1, std::memory_order_relaxed);
      pool.schedule([crew = shared_from_this()] { crew->stay(); });
    }
    loop.work();
    ticket_.fetch_add(1);
    // Either a helper sees that the ticket has changed, or it is seen here.
    for (int i = 0; inside_.load() != 0;) {
      if (++i > kSpins) std::this_thread::yield();
    }
  }

 private:
  void stay() {
    using Clock = std::chrono::steady_clock;
    uint64_t seen = 0;
    for (auto leave = Clock::now() + kStay; Clock::now() < leave;) {
      const uint64_t ticket = ticket_.load(std::memory_order_acquire);
      if (ticket % 2 == 0 || ticket == seen) continue;
      inside_.fetch_add(1);
      if (ticket_.load() == ticket) loop_->work();
      inside_.fetch_sub(1);
      seen = ticket;
      leave = Clock::now() + kStay;
    }
    members_.fetch_sub(1, std::memory_order_relaxed);
  }

  static constexpr std::chrono::microseconds kStay{200};
  static constexpr int kSpins = 10000;
  Loop* loop_ = nullptr;
  std::atomic<uint64_t> ticket_{0};  // odd while a loop is offered
  std::atomic<int64_t> members_{0}, inside_{0};
};

// Runs body(0), ..., body(count - 1), each once, in any order; returns when all have ended. `threads` may share them.
// A body may not call this again.
template <class Body>
void parallel_for(Pool& pool, int64_t count, int64_t threads, const Body& body) {
  threads = std::min({count, threads, pool.threads(), Loop::kMostThreads});
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  Loop loop([](const void* context, int64_t part) { (*static_cast<const Body*>(context))(part); }, &body, count,
            threads);
  Crew::mine().run(pool, loop, threads - 1);
}

template <class Body>
void parallel_for(Pool& pool, int64_t count, const Body& body) {
  parallel_for(pool, count, count, body);
}

}  // namespace gemwright
