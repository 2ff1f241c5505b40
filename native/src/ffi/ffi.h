// Helpers shared by the XLA FFI handlers.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "ops/parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// XLA's thread pool, so that the process never has two pools competing for its cores.
class XlaPool final : public gemwright::Pool {
 public:
  explicit XlaPool(ffi::ThreadPool& pool) : pool_(pool) {}
  int64_t threads() const override { return pool_.num_threads(); }
  void schedule(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool& pool_;
};

inline ffi::Error status(const std::string& error) {
  return error.empty() ? ffi::Error::Success() : ffi::Error::InvalidArgument(error);
}
