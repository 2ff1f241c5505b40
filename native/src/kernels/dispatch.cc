// Chooses an instruction set at run time. Only this file knows which ones the build has.
#include <atomic>
#include <cstring>

#include "kernels/kernels.h"

namespace gemwright {

// The instruction sets that CMakeLists.txt compiles the kernels for, best first.
#if defined(__x86_64__) && defined(__linux__)
#define GEMWRIGHT_ISAS(X) X(amx) X(avx512) X(avxvnni) X(avx2) X(portable)
#elif defined(__x86_64__)
#define GEMWRIGHT_ISAS(X) X(avx512) X(avxvnni) X(avx2) X(portable)
#elif defined(__aarch64__)
#define GEMWRIGHT_ISAS(X) X(neon) X(portable)
#else
#define GEMWRIGHT_ISAS(X) X(portable)
#endif

#define GEMWRIGHT_DECLARE(isa) \
  namespace isa {              \
  extern const Kernels table;  \
  }
GEMWRIGHT_ISAS(GEMWRIGHT_DECLARE)

namespace {

#define GEMWRIGHT_ADDRESS(isa) &isa::table,
const Kernels* const kTables[] = {GEMWRIGHT_ISAS(GEMWRIGHT_ADDRESS)};

const Kernels* find(const char* name) {
  for (const Kernels* table : kTables) {
    if (table->supported() && (name == nullptr || std::strcmp(name, table->name) == 0)) return table;
  }
  return nullptr;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> table{find(nullptr)};  // never null: portable is always supported
  return table;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

bool select_isa(const char* name) {
  const Kernels* table = find(name);
  if (table != nullptr) chosen().store(table, std::memory_order_relaxed);
  return table != nullptr;
}

const char* isa_name(int index) {
  for (const Kernels* table : kTables) {
    if (table->supported() && index-- == 0) return table->name;
  }
  return nullptr;
}

}  // namespace gemwright
