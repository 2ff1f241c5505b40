// The weight formats: their blocks in a GGUF file and in the layout that the kernels read.
//
// Kernels read *panels*. A panel holds 16 rows of a weight [out, in], interleaved so that a vector of 16 lanes works on 16
// outputs at once: no sum across lanes is needed, one activation is broadcast to all lanes, and 16 scales load as one
// vector. A panel is a sequence of blocks that advance along `in`, so one pass over a weight is one contiguous read.
// Repacking permutes and widens fields (a six-bit scale becomes a byte); it never changes a value. Missing rows of the
// last panel have NaN scales.
//
// Source of the GGUF layouts: ggml-org/llama.cpp ggml/src/ggml-common.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd/types.h"

namespace gemwright {

constexpr int kStripe = 32;  // values of one row in a stripe, the unit that shares an activation scale

// 16 rows x 32 values of `Bits` bits each, in groups of four: the 64 bytes of group g hold values 4g..4g+3 of row 0, then
// of row 1, and so on, the operand order of four-way byte dot products.
template <int Bits>
struct Quants;

template <>
struct Quants<4> {
  static constexpr bool kSigned = false;
  static constexpr int kLargest = 15;
  uint8_t low[4][64];  // low nibbles: groups 0-3, high nibbles: groups 4-7
};

template <>
struct Quants<5> {
  static constexpr bool kSigned = false;
  static constexpr int kLargest = 31;
  uint8_t low[4][64];
  uint8_t high[64];  // bit g: the fifth bit of group g
};

template <>
struct Quants<6> {
  static constexpr bool kSigned = false;
  static constexpr int kLargest = 63;
  uint8_t low[4][64];
  uint8_t high[2][64];  // high[h], bits 2i and 2i + 1: the top bits of group 4h + i
};

template <>
struct Quants<8> {
  static constexpr bool kSigned = true;
  uint8_t bytes[8][64];  // two's complement
};

// Four-bit indices of kIq4Values, in the order of Quants<4>.
struct Indices : Quants<4> {
  static constexpr bool kSigned = true;
};
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// value = d * (q - kOffset), one d for 32 values; q is looked up in kIq4Values if `Integers` are indices.
template <class Integers, int Offset>
struct Simple {
  static constexpr int kOffset = Offset;
  static constexpr int kElements = 32;  // values of one row in a block
  static constexpr int kScaled = 32;    // values that share a scale
  static constexpr bool kMinima = false;
  static constexpr bool kPlain = false;
  struct Stripe {
    Integers q;
  };
  struct Panel {
    Float16 d[kLanes];
    Stripe stripes[1];
  };
};

struct Q4_0 : Simple<Quants<4>, 8> {
  struct Source {
    Float16 d;
    uint8_t qs[16];
  };
};

struct Q5_0 : Simple<Quants<5>, 16> {
  struct Source {
    Float16 d;
    uint8_t qh[4];
    uint8_t qs[16];
  };
};

struct Q8_0 : Simple<Quants<8>, 0> {
  struct Source {
    Float16 d;
    uint8_t qs[32];
  };
};

struct IQ4_NL : Simple<Indices, 0> {
  struct Source {
    Float16 d;
    uint8_t qs[16];
  };
};

// value = (d * scale) * q - (dmin * min), with one scale and one min for 32 values.
template <int Bits>
struct WithMinima {
  static constexpr int kOffset = 0;
  static constexpr int kElements = 256;
  static constexpr int kScaled = 32;
  static constexpr bool kMinima = true;
  static constexpr bool kPlain = false;
  struct Stripe {
    uint8_t scale[kLanes];
    uint8_t min[kLanes];
    Quants<Bits> q;
  };
  struct Panel {
    Float16 d[kLanes];
    Float16 dmin[kLanes];
    Stripe stripes[8];
  };
};

struct Q4_K : WithMinima<4> {
  struct Source {
    Float16 d;
    Float16 dmin;
    uint8_t scales[12];
    uint8_t qs[128];
  };
};

struct Q5_K : WithMinima<5> {
  struct Source {
    Float16 d;
    Float16 dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
  };
};

// value = (d * scale) * (q - 32), with one scale for 16 values.
struct Q6_K {
  static constexpr int kOffset = 32;
  static constexpr int kElements = 256;
  static constexpr int kScaled = 16;
  static constexpr bool kMinima = false;
  static constexpr bool kPlain = false;
  struct Source {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    Float16 d;
  };
  struct Stripe {
    int8_t scale[2][kLanes];
    Quants<6> q;
  };
  struct Panel {
    Float16 d[kLanes];
    Stripe stripes[8];
  };
};

// value = (d * scale) * kIq4Values[q], with one scale for 32 values.
struct IQ4_XS {
  static constexpr int kOffset = 0;
  static constexpr int kElements = 256;
  static constexpr int kScaled = 32;
  static constexpr bool kMinima = false;
  static constexpr bool kPlain = false;
  struct Source {
    Float16 d;
    uint16_t scales_high;  // bits 2i and 2i + 1: the top bits of scale i
    uint8_t scales_low[4];
    uint8_t qs[128];
  };
  struct Stripe {
    int8_t scale[kLanes];
    Indices q;
  };
  struct Panel {
    Float16 d[kLanes];
    Stripe stripes[8];
  };
};

// Interleaved floats: a block is one value of each of the 16 rows.
template <class T>
struct Plain {
  static constexpr int kElements = 1;
  static constexpr bool kPlain = true;
  using Source = T;
  struct Panel {
    T values[kLanes];
  };
};

using F32 = Plain<float>;
using F16 = Plain<Float16>;
using BF16 = Plain<Bfloat16>;

// Every format, in the order of `Encoding`: X(name).
#define GEMWRIGHT_FORMATS(X) X(F32) X(F16) X(BF16) X(Q4_0) X(Q5_0) X(Q8_0) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_NL) X(IQ4_XS)

#define GEMWRIGHT_NAME(name) k##name,
enum Encoding { GEMWRIGHT_FORMATS(GEMWRIGHT_NAME) kEncodings };
#undef GEMWRIGHT_NAME

// 32 values of one activation row as integers: x[i] is about scale * q[i].
template <class Integer>
struct Quantized {
  Integer q[kStripe];  // symmetric: -127..127 or -32767..32767
  float scale;         // largest magnitude / largest integer; NaN if a value is not finite
  // Initial integer sum of each scaled part, which makes an unsigned weight's offset free:
  // sum((w - offset) * q) = sum(w * q) - offset * sum(q).
  int32_t start[2];
  float sum;  // scale * sum(q), to be multiplied by the minima of a format that has them
};
using Activations = Quantized<int8_t>;
// Of each four values, the first and third come first: the order in which pairs of bytes widen to pairs of 16 bits.
using Activations16 = Quantized<int16_t>;

}  // namespace gemwright
