// The XLA FFI handler of the cross-entropy.
#include "ffi/ffi.h"
#include "ops/ops.h"

namespace {

// A gradient without elements is not computed.
ffi::Error cross_entropy(ffi::ThreadPool threads, ffi::BufferR2<ffi::F32> hidden, ffi::BufferR2<ffi::F32> head,
                         ffi::BufferR1<ffi::S32> targets, ffi::BufferR1<ffi::PRED> learned,
                         ffi::ResultBufferR1<ffi::F32> losses, ffi::ResultBufferR2<ffi::F32> gradient, float cap) {
  const auto shape = hidden.dimensions(), head_shape = head.dimensions();
  const size_t tokens = shape[0];
  if (head_shape[1] != shape[1] || targets.element_count() != tokens || learned.element_count() != tokens ||
      losses->element_count() != tokens ||
      (gradient->element_count() != 0 && gradient->element_count() != hidden.element_count())) {
    return ffi::Error::InvalidArgument("cross_entropy: the shapes do not match.");
  }
  XlaPool pool(threads);
  return status(
      gemwright::cross_entropy(pool, {shape[0], shape[1], head_shape[0], hidden.typed_data(), head.typed_data(),
                                      targets.typed_data(), learned.typed_data(), cap, losses->typed_data(),
                                      gradient->element_count() > 0 ? gradient->typed_data() : nullptr}));
}

}  // namespace

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemwright_cross_entropy, cross_entropy,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Arg<ffi::BufferR1<ffi::PRED>>()
                                  .Ret<ffi::BufferR1<ffi::F32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Attr<float>("cap"));

#pragma GCC visibility pop
