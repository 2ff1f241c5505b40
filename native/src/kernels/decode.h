// Decoding of panels: groups of four values as bytes, scales, and sixteen rows as float32. Include it after the header of
// an instruction set.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/format.h"

namespace gemwright {
namespace GEMWRIGHT_ISA {

// Calls body(integral_constant 0), ..., body(integral_constant N - 1); the indices are constants, which shifts require.
template <class Body, int... I>
[[gnu::always_inline]] inline void unroll(std::integer_sequence<int, I...>, Body body) {
  (body(std::integral_constant<int, I>{}), ...);
}
template <int N, class Body>
[[gnu::always_inline]] inline void unroll(Body body) {
  unroll(std::make_integer_sequence<int, N>{}, body);
}
#define GEMWRIGHT_INLINE __attribute__((always_inline))

// ---- Unpacking one group: four values of each of the 16 rows, as bytes.

template <int G>
inline Bytes group(const Quants<4>& q) {
  return shift_and < G<4 ? 0 : -4>(load_bytes(q.low[G % 4]), 15);
}
template <int G>
inline Bytes group(const Quants<5>& q) {
  return group<G>(reinterpret_cast<const Quants<4>&>(q.low)) | shift_and<4 - G>(load_bytes(q.high), 16);
}
template <int G>
inline Bytes group(const Quants<6>& q) {
  const Bytes high = load_bytes(q.high[G / 4]);
  return group<G>(reinterpret_cast<const Quants<4>&>(q.low)) | shift_and<4 - 2 * (G % 4)>(high, 48);
}
template <int G>
inline Bytes group(const Quants<8>& q) {
  return load_bytes(q.bytes[G]);
}
template <int G>
inline Bytes group(const Indices& q) {
  return look_up(kIq4Values, group<G>(static_cast<const Quants<4>&>(q)));
}

// ---- Scales. `Part` counts the scaled parts of a stripe: two in Q6_K, else one.

template <class Format>
struct BlockScales {
  Floats d, dmin;
  explicit BlockScales(const typename Format::Panel& block) : d(load(block.d)), dmin(zero()) {
    if constexpr (Format::kMinima) dmin = load(block.dmin);
  }
  template <int Part>
  Floats scale(const typename Format::Stripe& stripe) const {
    if constexpr (Format::kElements == kStripe) {
      return d;
    } else if constexpr (Format::kScaled < kStripe) {
      return d * load(stripe.scale[Part]);
    } else {
      return d * load(stripe.scale);
    }
  }
};

template <class Format>
constexpr bool kSignedWeights = decltype(Format::Stripe::q)::kSigned;
template <class Format>  // signed, but never -128, which has no negative in 8 bits
constexpr bool kSmallWeights = std::is_base_of_v<Indices, decltype(Format::Stripe::q)>;

// Prefetches a part of the panel. A product with a single tile of activations is bound by memory, and the hardware prefetcher is
// too late. Past the end of the weight this does nothing; the address is an integer because a pointer past the end is
// undefined.
template <class Part>
inline void prefetch_ahead(const Part& part) {
  constexpr uintptr_t kAhead = 4096, kLine = 64;
  for (uintptr_t i = 0; i < sizeof(part); i += kLine) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(&part) + kAhead + i));
  }
}

// ---- Decoded weights in float32, equal to the reference decoder of the format.

constexpr int kTileValues = 256;  // one K block; the tile, 16 KB, stays in the first-level cache
using Tile = float[kTileValues][kLanes];

// Decodes one stripe of a block: tile[i] gets value i of all 16 rows.
template <class Format>
void decode_stripe(const BlockScales<Format>& scales, const typename Format::Stripe& stripe, float (*tile)[kLanes]) {
  Floats min = zero();
  if constexpr (Format::kMinima) min = scales.dmin * load(stripe.min);
  unroll<kStripe / 4>([&](auto g) GEMWRIGHT_INLINE {
    const Bytes q = group<g>(stripe.q);
    const Floats scale = scales.template scale<4 * g / Format::kScaled>(stripe);
    unroll<4>([&](auto j) GEMWRIGHT_INLINE {
      Floats value;
      if constexpr (kSignedWeights<Format>) {
        value = to_float(signed_byte<j>(q));
      } else {
        value = to_float(unsigned_byte<j>(q));
      }
      if constexpr (Format::kOffset != 0) value = value - broadcast(float(Format::kOffset));
      value = value * scale;
      if constexpr (Format::kMinima) value = value - min;
      store(tile[4 * g + j], value);
    });
  });
}

// Decodes values [first, first + count) of a panel's rows; both are multiples of the format's block.
template <class Format>
void decode(const uint8_t* panel, int64_t first, int64_t count, Tile& tile) {
  const auto* block = reinterpret_cast<const typename Format::Panel*>(panel) + first / Format::kElements;
  for (int64_t i = 0; i < count; ++block) {
    if constexpr (Format::kPlain) {
      store(tile[i++], load(block->values));
    } else {
      const BlockScales<Format> scales(*block);
      for (const typename Format::Stripe& stripe : block->stripes) {
        decode_stripe<Format>(scales, stripe, tile + i);
        i += kStripe;
      }
    }
  }
}

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
