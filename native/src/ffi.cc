// The shared library's surface: two XLA FFI handlers, and plain C functions that Python calls through ctypes.
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "kernels.h"
#include "ops.h"
#include "packing.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// XLA's own threads, so that the process never has two pools contending for its cores.
class XlaPool final : public gemwright::Pool {
 public:
  explicit XlaPool(ffi::ThreadPool& pool) : pool_(pool) {}
  int64_t threads() const override { return pool_.num_threads(); }
  void schedule(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool& pool_;
};

ffi::Error result(const std::string& wrong) {
  return wrong.empty() ? ffi::Error::Success() : ffi::Error::InvalidArgument(wrong);
}

ffi::Error matmul(ffi::ThreadPool threads, ffi::BufferR2<ffi::F32> x, ffi::BufferR1<ffi::U8> packed,
                  ffi::ResultBufferR2<ffi::F32> y, std::string_view encoding, bool exact) {
  const auto x_shape = x.dimensions(), y_shape = y->dimensions();
  if (x_shape[0] != y_shape[0]) return ffi::Error::InvalidArgument("matmul: x and y have different numbers of rows.");
  XlaPool pool(threads);
  return result(gemwright::matmul(pool, encoding, exact, x.typed_data(), x_shape[0], x_shape[1], packed.typed_data(),
                                  packed.dimensions()[0], y->typed_data(), y_shape[1]));
}

ffi::Error rows(ffi::ThreadPool threads, ffi::BufferR1<ffi::U8> packed, ffi::BufferR1<ffi::S32> ids,
                ffi::ResultBufferR2<ffi::F32> y, std::string_view encoding) {
  const auto y_shape = y->dimensions();
  if (ids.dimensions()[0] != y_shape[0]) return ffi::Error::InvalidArgument("rows: ids and y have different lengths.");
  XlaPool pool(threads);
  return result(gemwright::rows(pool, encoding, packed.typed_data(), packed.dimensions()[0], ids.typed_data(),
                                y_shape[0], y->typed_data(), y_shape[1]));
}

}  // namespace

// What the library exports; all else is hidden.
#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemwright_matmul, matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::U8>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Attr<std::string_view>("encoding")
                                  .Attr<bool>("exact"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemwright_rows, rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR1<ffi::U8>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Attr<std::string_view>("encoding"));

extern "C" {

// 1 if chosen, 0 if this build or processor lacks it.
int gemwright_select_isa(const char* name) { return gemwright::select_isa(name); }

const char* gemwright_isa() { return gemwright::kernels().name; }

const char* gemwright_isa_name(int index) { return gemwright::isa_name(index); }

// -1 where there is no such encoding or the shape does not fit it.
int64_t gemwright_packed_bytes(const char* encoding, int64_t out, int64_t in) {
  const auto found = gemwright::find_encoding(encoding);
  return found ? gemwright::packed_bytes(*found, out, in).value_or(-1) : -1;
}

// 1 if packed, 0 if a size is not what the encoding and shape need.
int gemwright_pack(const char* encoding, const uint8_t* source, int64_t source_size, int64_t out, int64_t in,
                   uint8_t* panels, int64_t panels_size, int threads) {
  const auto found = gemwright::find_encoding(encoding);
  if (!found || threads < 1 || gemwright::source_bytes(*found, out, in) != source_size ||
      gemwright::packed_bytes(*found, out, in) != panels_size) {
    return 0;
  }
  gemwright::pack(*found, source, out, in, panels, threads);
  return 1;
}

}  // extern "C"

#pragma GCC visibility pop
