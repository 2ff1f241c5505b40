// The table of kernels that every instruction set provides, and the choice between them.
#pragma once

#include <cstdint>

#include "attention.h"
#include "format.h"
#include "recurrence.h"
#include "split.h"

namespace gemwright {

// Kernels take rows from a multiple of this to the next or to the last row; every set's row tile divides it.
constexpr int kRowGroup = 8;

// y[rows, out] = x[rows, in] . w[out, in]^T, rows of each array contiguous.
struct MatmulArgs {
  const uint8_t* panels;
  int64_t panel_bytes;
  int64_t in, out;
  const float* x;
  void* tiles;  // x as the kernels read it: see `prepare` below
  float* y;
  bool paired;  // two rows of x are parts of one, whose products are added: y[rows / 2, out]; not for exact products
};

// y[n, width] = w[ids], NaN for an id outside the table.
struct RowsArgs {
  const uint8_t* panels;
  int64_t panel_bytes, n_panels;
  const int32_t* ids;
  int64_t width;
  float* y;
};

// One row of activations; `y` may be one of the others.
struct RowKernels {
  // x / rms(x) * (1 + gain), added to `residual` unless that is null.
  void (*normalise)(const float* x, const float* gain, float eps, const float* residual, int64_t width, float* y);
  void (*add)(const float* x, const float* residual, int64_t width, float* y);
  // gelu(gate) * x
  void (*gate)(const float* gate, const float* x, int64_t width, float* y);
  // What rounding to 8 bits leaves out; `width` is a multiple of kStripe.
  void (*rest)(const float* x, int64_t width, float* y);
};

// Products of many rows with activations and weights rounded to bfloat16; null where the instruction set has no such.
struct Bfloat16Kernels {
  // Rows [row, row + rows) of x into tiles, which have room for a multiple of kBfloat16Rows.
  void (*prepare)(const MatmulArgs&, int64_t row, int64_t rows);
  void (*matmul[kEncodings])(const MatmulArgs&, int64_t first, int64_t last, int64_t row, int64_t rows);
};
constexpr int64_t kBfloat16Rows = 32;  // the first row of a product is a multiple of it

struct Kernels {
  const char* name;
  bool (*supported)();  // asks the processor
  // A product with activations of 8 bits; null for plain floats. `prepare` quantises rows [row, row + rows) of
  // x into tiles, an `Activations` for each stripe; within a tile of n rows those of the n rows are neighbours,
  // so that the product finds them all at fixed distances from one pointer.
  void (*prepare[kEncodings])(const MatmulArgs&, int64_t row, int64_t rows);
  void (*matmul[kEncodings])(const MatmulArgs&, int64_t first, int64_t last, int64_t row, int64_t rows);
  // A product of floats, with tiles of floats: for panels [first, last) and the prepared rows.
  void (*prepare_exact)(const MatmulArgs&, int64_t row, int64_t rows);
  void (*exact[kEncodings])(const MatmulArgs&, int64_t first, int64_t last, int64_t row, int64_t rows);
  // Ids [first, last).
  void (*rows[kEncodings])(const RowsArgs&, int64_t first, int64_t last);
  const Bfloat16Kernels& bfloat16;
  const AttentionKernels& attention;
  const RecurrenceKernels& recurrence;
  const RowKernels& row;
  const SplitKernels& split;
};

// The chosen instruction set: the best that this processor has, unless `select_isa` chose another.
const Kernels& kernels();

// Chooses by name; false where this build or processor lacks it.
bool select_isa(const char* name);

// The name of the `index`-th instruction set that this processor can run, best first; null past the last.
const char* isa_name(int index);

}  // namespace gemwright
