// The exports of the shared library: XLA FFI handlers, and C functions that Python calls through ctypes.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "ffi/ffi.h"
#include "kernels/kernels.h"
#include "ops/ops.h"
#include "ops/repack.h"
#include "ops/split.h"

namespace {

// Returns null for an absent optional argument, which has no elements.
template <class Buffer>
const float* data_or_null(const Buffer& buffer) {
  return buffer.element_count() > 0 ? buffer.typed_data() : nullptr;
}

ffi::Error fused_linear(ffi::ThreadPool threads, ffi::BufferR2<ffi::F32> x, ffi::BufferR1<ffi::F32> gain,
                        ffi::BufferR2<ffi::F32> gate, ffi::BufferR1<ffi::F32> post_gain,
                        ffi::BufferR2<ffi::F32> residual, ffi::RemainingArgs packed, ffi::RemainingRets y,
                        std::string_view encodings, bool exact, int64_t activation_bits, float eps) {
  std::vector<gemwright::Weight> weights;
  for (size_t i = 0; i < packed.size() && i < y.size(); ++i) {
    const auto weight = packed.get<ffi::BufferR1<ffi::U8>>(i);
    auto result = y.get<ffi::BufferR2<ffi::F32>>(i);
    if (!weight || !result || (*result)->dimensions()[0] != x.dimensions()[0]) {
      return ffi::Error::InvalidArgument("fused_linear: a weight or a result has the wrong type or shape.");
    }
    const size_t end = std::min(encodings.find(' '), encodings.size());
    weights.push_back({encodings.substr(0, end), weight->typed_data(), weight->dimensions()[0],
                       (*result)->dimensions()[1], (*result)->typed_data()});
    encodings.remove_prefix(std::min(end + 1, encodings.size()));
  }
  XlaPool pool(threads);
  return status(gemwright::fused_linear(pool, exact, x.typed_data(), x.dimensions()[0], x.dimensions()[1],
                                        {data_or_null(gain), data_or_null(gate), data_or_null(post_gain),
                                         data_or_null(residual), eps, static_cast<int>(activation_bits)},
                                        weights));
}

ffi::Error rows(ffi::ThreadPool threads, ffi::BufferR1<ffi::U8> packed, ffi::BufferR1<ffi::S32> ids,
                ffi::ResultBufferR2<ffi::F32> y, std::string_view encoding) {
  const auto y_shape = y->dimensions();
  if (ids.dimensions()[0] != y_shape[0]) return ffi::Error::InvalidArgument("rows: ids and y have different lengths.");
  XlaPool pool(threads);
  return status(gemwright::rows(pool, encoding, packed.typed_data(), packed.dimensions()[0], ids.typed_data(),
                                y_shape[0], y->typed_data(), y_shape[1]));
}

ffi::Error top(ffi::ThreadPool threads, ffi::BufferR2<ffi::F32> x, ffi::BufferR1<ffi::U8> packed,
               ffi::ResultBufferR2<ffi::F32> values, ffi::ResultBufferR2<ffi::S32> ids, std::string_view encoding,
               int64_t out, int64_t limit) {
  XlaPool pool(threads);
  return status(gemwright::top(pool, encoding, x.typed_data(), x.dimensions()[0], x.dimensions()[1],
                               packed.typed_data(), packed.dimensions()[0], out, limit, values->dimensions()[1],
                               values->typed_data(), ids->typed_data()));
}

// The cache is updated in place if XLA aliases it to the results.
template <ffi::DataType Type>
ffi::Error attention(ffi::ThreadPool threads, ffi::BufferR4<ffi::F32> q, ffi::BufferR4<ffi::F32> k,
                     ffi::BufferR4<ffi::F32> v, ffi::BufferR4<Type> cache_keys, ffi::BufferR4<Type> cache_values,
                     ffi::BufferR2<ffi::S32> positions, ffi::BufferR1<ffi::S32> lengths,
                     ffi::BufferR4<ffi::F32> rotation, ffi::BufferR1<ffi::F32> q_gain, ffi::BufferR1<ffi::F32> k_gain,
                     ffi::ResultBufferR4<ffi::F32> y, ffi::ResultBufferR4<Type> keys_after,
                     ffi::ResultBufferR4<Type> values_after, int64_t window, float scale, float cap, float eps) {
  using Number = std::conditional_t<Type == ffi::F32, float, gemwright::Bfloat16>;
  const auto shape = q.dimensions(), cache_shape = cache_keys.dimensions(), turns = rotation.dimensions();
  const std::pair<ffi::BufferR4<Type>*, ffi::ResultBufferR4<Type>*> caches[] = {{&cache_keys, &keys_after},
                                                                                {&cache_values, &values_after}};
  for (const auto& [before, after] : caches) {
    if (before->typed_data() != (*after)->typed_data()) {
      std::memcpy((*after)->typed_data(), before->typed_data(), before->size_bytes());
    }
  }
  gemwright::AttentionArgs args{};
  args.batch = shape[0], args.tokens = shape[1], args.heads = shape[2], args.width = shape[3];
  args.kv_heads = cache_shape[1], args.rotated = 2 * turns[3];
  args.q = q.typed_data(), args.k = k.typed_data(), args.v = v.typed_data();
  args.positions = positions.typed_data(), args.lengths = lengths.typed_data(), args.rotation = rotation.typed_data();
  args.q_gain = data_or_null(q_gain), args.k_gain = data_or_null(k_gain);
  args.window = window, args.scale = scale, args.cap = cap, args.eps = eps;
  args.y = y->typed_data();
  XlaPool pool(threads);
  return status(gemwright::attention<Number>(pool, args,
                                             {static_cast<Number*>(keys_after->untyped_data()),
                                              static_cast<Number*>(values_after->untyped_data()), cache_shape[2]}));
}

}  // namespace

// Everything outside this pragma is hidden.
#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemwright_fused_linear, fused_linear,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::string_view>("encodings")
                                  .Attr<bool>("exact")
                                  .Attr<int64_t>("activation_bits")
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemwright_rows, rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR1<ffi::U8>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Attr<std::string_view>("encoding"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemwright_top, top,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::U8>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Ret<ffi::BufferR2<ffi::S32>>()
                                  .Attr<std::string_view>("encoding")
                                  .Attr<int64_t>("out")
                                  .Attr<int64_t>("limit"));

#define GEMWRIGHT_ATTENTION(name, Type)                                      \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(gemwright_attention_##name, attention<Type>, \
                                ffi::Ffi::Bind()                             \
                                    .Ctx<ffi::ThreadPool>()                  \
                                    .Arg<ffi::BufferR4<ffi::F32>>()          \
                                    .Arg<ffi::BufferR4<ffi::F32>>()          \
                                    .Arg<ffi::BufferR4<ffi::F32>>()          \
                                    .Arg<ffi::BufferR4<Type>>()              \
                                    .Arg<ffi::BufferR4<Type>>()              \
                                    .Arg<ffi::BufferR2<ffi::S32>>()          \
                                    .Arg<ffi::BufferR1<ffi::S32>>()          \
                                    .Arg<ffi::BufferR4<ffi::F32>>()          \
                                    .Arg<ffi::BufferR1<ffi::F32>>()          \
                                    .Arg<ffi::BufferR1<ffi::F32>>()          \
                                    .Ret<ffi::BufferR4<ffi::F32>>()          \
                                    .Ret<ffi::BufferR4<Type>>()              \
                                    .Ret<ffi::BufferR4<Type>>()              \
                                    .Attr<int64_t>("window")                 \
                                    .Attr<float>("scale")                    \
                                    .Attr<float>("cap")                      \
                                    .Attr<float>("eps"))

GEMWRIGHT_ATTENTION(float32, ffi::F32);
GEMWRIGHT_ATTENTION(bfloat16, ffi::BF16);

extern "C" {

// Returns 1 if chosen, 0 if this build or processor lacks it.
int gemwright_select_isa(const char* name) { return gemwright::select_isa(name); }

const char* gemwright_isa() { return gemwright::kernels().name; }

const char* gemwright_isa_name(int index) { return gemwright::isa_name(index); }

// Returns -1 if there is no such encoding or the shape does not fit it.
int64_t gemwright_packed_bytes(const char* encoding, int64_t out, int64_t in) {
  if (encoding == gemwright::kSplitName) {
    const auto split = gemwright::split_layout(out, in);
    return split ? split->size : -1;
  }
  const auto found = gemwright::find_encoding(encoding);
  return found ? gemwright::packed_bytes(*found, out, in).value_or(-1) : -1;
}

// Repacks rows [first, first + rows) of a weight [out, in]; `first` is a multiple of 16, and so is `rows` unless they
// are the last. Returns 1 if done, 0 if a size does not match the encoding and shape, -1 if a scale cannot be split.
int gemwright_repack(const char* encoding, const uint8_t* source, int64_t source_size, int64_t out, int64_t in,
                     int64_t first, int64_t rows, uint8_t* packed, int64_t packed_size, int threads) {
  const auto found = gemwright::find_encoding(encoding == gemwright::kSplitName ? "Q8_0" : encoding);
  if (!found || threads < 1 || first < 0 || rows < 0 || first > out - rows || first % gemwright::kLanes != 0 ||
      (rows % gemwright::kLanes != 0 && first + rows != out) ||
      gemwright::source_bytes(*found, rows, in) != source_size ||
      gemwright_packed_bytes(encoding, out, in) != packed_size) {
    return 0;
  }
  if (encoding == gemwright::kSplitName) {
    return gemwright::repack_split(*gemwright::split_layout(out, in), source, first, rows, packed, threads) ? 1 : -1;
  }
  uint8_t* const place = packed + first / gemwright::kLanes * *gemwright::panel_bytes(*found, in);
  gemwright::repack(*found, source, rows, in, place, threads);
  return 1;
}

}  // extern "C"

#pragma GCC visibility pop
