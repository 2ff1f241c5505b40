// The kernels, written once over sixteen lanes and compiled once for each instruction set.
//
// Everything here is inside a namespace named after the instruction set, and no inline function of the
// standard library is used, so that the linker can never hand one set's code to a machine that lacks it.
#include "kernels.h"

#include <cfloat>
#include <cstring>
#include <utility>

#define GEMWRIGHT_STRING_(x) #x
#define GEMWRIGHT_STRING(x) GEMWRIGHT_STRING_(x)
#include GEMWRIGHT_SIMD_HEADER

namespace gemwright {
namespace GEMWRIGHT_ISA {
namespace {

// Calls body(integral_constant 0), ..., body(integral_constant N - 1); the indices are constants, as shifts need.
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
  return shift_and<G < 4 ? 0 : -4>(load_bytes(q.low[G % 4]), 15);
}
template <int G>
inline Bytes group(const Quants<5>& q) {
  return group<G>(reinterpret_cast<const Quants<4>&>(q.low)) | shift_and<4 - G>(load_bytes(q.high), 16);
}
template <int G>
inline Bytes group(const Quants<6>& q) {
  return group<G>(reinterpret_cast<const Quants<4>&>(q.low)) | shift_and<4 - 2 * (G % 4)>(load_bytes(q.high[G / 4]), 48);
}
template <int G>
inline Bytes group(const Quants<8>& q) {
  return load_bytes(q.bytes[G]);
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
constexpr bool kSignedWeights = Format::kBits == 8;

// ---- Activations.

template <class Format>
void quantise(const float* x, int64_t stripes, Activations* activations) {
  constexpr int kParts = kStripe / Format::kScaled;
  constexpr int kOffset = Format::kOffset + (kSignedWeights<Format> ? kSignedOffset : 0);
  for (int64_t s = 0; s < stripes; ++s, x += kStripe) {
    Activations& a = activations[s];
    int32_t largest = 0;  // of the magnitudes' bits, which order as the magnitudes do, infinities and NaNs last
    for (int i = 0; i < kStripe; ++i) {
      int32_t bits;
      std::memcpy(&bits, x + i, 4);
      bits &= 0x7fffffff;
      largest = bits > largest ? bits : largest;
    }
    float magnitude;
    std::memcpy(&magnitude, &largest, 4);
    const float scale = magnitude / 127.0f;
    const bool finite = largest < 0x7f800000;
    a.scale = finite ? scale : __builtin_nanf("");
    a.start[0] = a.start[1] = 0;
    a.sum = 0.0f;
    if (!finite || scale < FLT_MIN) {  // below, 1 / scale might be infinite
      std::memset(a.q, 0, kStripe);
      if (finite) a.scale = 0.0f;
      continue;
    }
    const float inverse = 1.0f / scale;
    int32_t q[kStripe];
    for (int i = 0; i < kStripe; ++i) q[i] = int32_t(__builtin_rintf(x[i] * inverse));
    for (int i = 0; i < kStripe; ++i) a.q[i] = int8_t(q[i]);
    for (int part = 0; part < kParts; ++part) {
      int32_t sum = 0;
      for (int i = 0; i < Format::kScaled; ++i) sum += q[part * Format::kScaled + i];
      a.start[part] = -kOffset * sum;
      a.sum += scale * float(sum);
    }
  }
}

// ---- Integer products: one panel times `Rows` rows of activations.

template <class Format, int Rows>
inline void accumulate(const typename Format::Stripe& w, const BlockScales<Format>& scales, const Activations* a,
                       int64_t stride, Floats (&y)[Rows]) {
  constexpr int kGroups = Format::kScaled / 4;
  unroll<kStripe / Format::kScaled>([&](auto part) GEMWRIGHT_INLINE {
    Ints sum[Rows];
    for (int r = 0; r < Rows; ++r) sum[r] = broadcast(a[r * stride].start[part]);
    unroll<kGroups>([&](auto g) GEMWRIGHT_INLINE {
      constexpr int kGroup = part * kGroups + g;
      if constexpr (kSignedWeights<Format>) {
        const Signed q = prepare_signed(group<kGroup>(w.q));
        for (int r = 0; r < Rows; ++r) sum[r] = dot_signed(sum[r], q, a[r * stride].q + 4 * kGroup);
      } else {
        const Bytes q = group<kGroup>(w.q);
        for (int r = 0; r < Rows; ++r) sum[r] = dot(sum[r], q, a[r * stride].q + 4 * kGroup);
      }
    });
    const Floats scale = scales.template scale<part>(w);
    for (int r = 0; r < Rows; ++r) {
      y[r] = multiply_add(to_float(sum[r]) * broadcast(a[r * stride].scale), scale, y[r]);
    }
  });
  if constexpr (Format::kMinima) {
    const Floats min = scales.dmin * load(w.min);
    for (int r = 0; r < Rows; ++r) y[r] = multiply_add(min, broadcast(-a[r * stride].sum), y[r]);
  }
}

template <class Format, int Rows>
void matmul_tile(const typename Format::Panel* panel, const MatmulArgs& args, int64_t row, Floats (&y)[Rows]) {
  const int64_t stride = args.in / kStripe;
  const Activations* a = args.activations + row * stride;
  for (int64_t block = 0; block < args.in / Format::kElements; ++block) {
    const BlockScales<Format> scales(panel[block]);
    for (const typename Format::Stripe& stripe : panel[block].stripes) {
      accumulate<Format, Rows>(stripe, scales, a++, stride, y);
    }
  }
}

// ---- Exact products: float activations times the weights that a decoder would give.

// Calls body(i, values) for the `kElements` values of one block, `values` holding value i of all 16 rows.
template <class Format, class Body>
[[gnu::always_inline]] inline void decode_block(const typename Format::Panel& block, Body body) {
  if constexpr (Format::kPlain) {
    body(0, load(block.values));
  } else {
    const BlockScales<Format> scales(block);
    int first = 0;
    for (const typename Format::Stripe& stripe : block.stripes) {
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
          body(first + 4 * g + j, value);
        });
      });
      first += kStripe;
    }
  }
}

template <class Format, int Rows>
void exact_tile(const typename Format::Panel* panel, const MatmulArgs& args, int64_t row, Floats (&y)[Rows]) {
  const float* x = args.x + row * args.in;
  for (int64_t block = 0; block < args.in / Format::kElements; ++block, x += Format::kElements) {
    decode_block<Format>(panel[block], [&](int i, Floats w) GEMWRIGHT_INLINE {
      for (int r = 0; r < Rows; ++r) y[r] = multiply_add(w, broadcast(x[r * args.in + i]), y[r]);
    });
  }
}

// ---- Panels times row tiles.

// Computes one tile of `Rows` rows and writes the lanes that exist.
template <class Format, bool Exact, int Rows>
void tile(const MatmulArgs& args, int64_t panel, int64_t row) {
  const auto* blocks = reinterpret_cast<const typename Format::Panel*>(args.panels + panel * args.panel_bytes);
  Floats y[Rows];
  for (int r = 0; r < Rows; ++r) y[r] = zero();
  if constexpr (Exact) {
    exact_tile<Format, Rows>(blocks, args, row, y);
  } else {
    matmul_tile<Format, Rows>(blocks, args, row, y);
  }
  const int64_t first = panel * kLanes, left = args.out - first;
  for (int r = 0; r < Rows; ++r) {
    float* to = args.y + (row + r) * args.out + first;
    if (left >= kLanes) {
      store(to, y[r]);
    } else {
      float lanes[kLanes];
      store(lanes, y[r]);
      std::memcpy(to, lanes, left * sizeof(float));
    }
  }
}

template <class Format, bool Exact>
void matmul(const MatmulArgs& args, int64_t first, int64_t last, int64_t row, int64_t rows) {
  static_assert((kTileRows & (kTileRows - 1)) == 0, "the tail halves the tile");
  for (int64_t panel = first; panel < last; ++panel) {  // the panel stays in the cache for all rows
    int64_t r = row, end = row + rows;
    for (; end - r >= kTileRows; r += kTileRows) tile<Format, Exact, kTileRows>(args, panel, r);
    if constexpr (kTileRows > 4) {
      if (end - r >= 4) tile<Format, Exact, 4>(args, panel, r), r += 4;
    }
    if (end - r == 3) tile<Format, Exact, 3>(args, panel, r);
    if (end - r == 2) tile<Format, Exact, 2>(args, panel, r);
    if (end - r == 1) tile<Format, Exact, 1>(args, panel, r);
  }
}

// ---- Look-up.

// Decodes each panel once for a run of ids that it holds, so that consecutive ids cost one decoding.
template <class Format>
void rows(const RowsArgs& args, int64_t first, int64_t last) {
  while (first < last) {
    const int64_t panel = args.ids[first] < 0 ? args.n_panels : args.ids[first] / kLanes;
    float* y = args.y + first * args.width;
    if (panel >= args.n_panels) {
      for (int64_t i = 0; i < args.width; ++i) y[i] = __builtin_nanf("");
      ++first;
      continue;
    }
    int64_t end = first + 1;
    while (end < last && args.ids[end] >= 0 && args.ids[end] / kLanes == panel) ++end;
    const auto* blocks = reinterpret_cast<const typename Format::Panel*>(args.panels + panel * args.panel_bytes);
    for (int64_t block = 0; block < args.width / Format::kElements; ++block) {
      decode_block<Format>(blocks[block], [&](int i, Floats w) {
        float lanes[kLanes];
        store(lanes, w);
        float* value = y + block * Format::kElements + i;
        for (int64_t id = first; id < end; ++id, value += args.width) *value = lanes[args.ids[id] % kLanes];
      });
    }
    first = end;
  }
}

template <class Format>
constexpr void add(Kernels& table, Encoding encoding) {
  table.exact[encoding] = matmul<Format, true>;
  table.rows[encoding] = rows<Format>;
  if constexpr (!Format::kPlain) {
    table.quantise[encoding] = quantise<Format>;
    table.matmul[encoding] = matmul<Format, false>;
  }
}

constexpr Kernels make_table() {
  Kernels table{GEMWRIGHT_STRING(GEMWRIGHT_ISA), supported, {}, {}, {}, {}};
#define GEMWRIGHT_ADD(format) add<format>(table, k##format);
  GEMWRIGHT_FORMATS(GEMWRIGHT_ADD)
#undef GEMWRIGHT_ADD
  return table;
}

}  // namespace

extern const Kernels table;
const Kernels table = make_table();

}  // namespace GEMWRIGHT_ISA
}  // namespace gemwright
