// The table of kernels that every instruction set provides, and the choice between them.
#pragma once

#include <cstdint>

#include "format.h"

namespace gemwright {

// y[rows, out] = x[rows, in] . w[out, in]^T, rows of each array contiguous.
struct MatmulArgs {
  const uint8_t* panels;
  int64_t panel_bytes;
  int64_t rows, in, out;
  const float* x;
  const Activations* activations;  // [rows, in / 32], read instead of x by the kernels with integer products
  float* y;
};

// y[n, width] = w[ids], NaN for an id outside the table.
struct RowsArgs {
  const uint8_t* panels;
  int64_t panel_bytes, n_panels;
  const int32_t* ids;
  int64_t width;
  float* y;
};

struct Kernels {
  const char* name;
  bool (*supported)();  // asks the processor
  // Quantises `stripes` times 32 floats; the start of a sum depends on the format and the instruction set.
  void (*quantise[kEncodings])(const float* x, int64_t stripes, Activations* activations);
  // Outputs of panels [first, last) for the rows [row, row + rows).
  void (*matmul[kEncodings])(const MatmulArgs&, int64_t first, int64_t last, int64_t row, int64_t rows);
  void (*exact[kEncodings])(const MatmulArgs&, int64_t first, int64_t last, int64_t row, int64_t rows);
  // Ids [first, last).
  void (*rows[kEncodings])(const RowsArgs&, int64_t first, int64_t last);
};

// The chosen instruction set: the best that this processor has, unless `select_isa` chose another.
const Kernels& kernels();

// Chooses by name; false where this build or processor lacks it.
bool select_isa(const char* name);

// The name of the `index`-th instruction set that this processor can run, best first; null past the last.
const char* isa_name(int index);

}  // namespace gemwright
