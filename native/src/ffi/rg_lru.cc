// XLA FFI handlers of the recurrent unit.
#include <type_traits>

#include "ffi/ffi.h"
#include "ops/ops.h"

namespace {

template <ffi::DataType Type>
ffi::Error rg_lru(ffi::ThreadPool threads, ffi::BufferR3<ffi::F32> u, ffi::BufferR2<ffi::S32> positions,
                  ffi::BufferR2<ffi::F32> initial, ffi::BufferR3<Type> input_gate,
                  ffi::BufferR2<ffi::F32> input_gate_bias, ffi::BufferR3<Type> decay_gate,
                  ffi::BufferR2<ffi::F32> decay_gate_bias, ffi::BufferR1<ffi::F32> decay,
                  ffi::ResultBufferR3<ffi::F32> h) {
  using Number = std::conditional_t<Type == ffi::F32, float, gemwright::Bfloat16>;
  const auto shape = u.dimensions(), gate = input_gate.dimensions();
  if (gate[1] != gate[2] || gate[0] * gate[1] != shape[2]) {
    return ffi::Error::InvalidArgument("rg_lru: the gates do not match the channels of u.");
  }
  gemwright::RgLruArgs<Number> args{};
  args.batch = shape[0], args.tokens = shape[1], args.blocks = gate[0], args.width = gate[1];
  args.u = u.typed_data(), args.positions = positions.typed_data(), args.initial = initial.typed_data();
  args.input_gate = static_cast<const Number*>(input_gate.untyped_data());
  args.decay_gate = static_cast<const Number*>(decay_gate.untyped_data());
  args.input_gate_bias = input_gate_bias.typed_data(), args.decay_gate_bias = decay_gate_bias.typed_data();
  args.decay = decay.typed_data(), args.h = h->typed_data();
  XlaPool pool(threads);
  return status(gemwright::rg_lru(pool, args));
}

}  // namespace

#pragma GCC visibility push(default)

#define GEMWRIGHT_RG_LRU(name, Type)                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(gemwright_rg_lru_##name, rg_lru<Type>, \
                                ffi::Ffi::Bind()                       \
                                    .Ctx<ffi::ThreadPool>()            \
                                    .Arg<ffi::BufferR3<ffi::F32>>()    \
                                    .Arg<ffi::BufferR2<ffi::S32>>()    \
                                    .Arg<ffi::BufferR2<ffi::F32>>()    \
                                    .Arg<ffi::BufferR3<Type>>()        \
                                    .Arg<ffi::BufferR2<ffi::F32>>()    \
                                    .Arg<ffi::BufferR3<Type>>()        \
                                    .Arg<ffi::BufferR2<ffi::F32>>()    \
                                    .Arg<ffi::BufferR1<ffi::F32>>()    \
                                    .Ret<ffi::BufferR3<ffi::F32>>())

GEMWRIGHT_RG_LRU(float32, ffi::F32);
GEMWRIGHT_RG_LRU(bfloat16, ffi::BF16);

#pragma GCC visibility pop
