#include "kernels/rg_lru.h"

#include <algorithm>

#include "kernels/kernels.h"
#include "ops/ops.h"

namespace gemwright {

constexpr int64_t kTaskWork = 1 << 16;  // multiply-adds per task: some tens of microseconds

template <class Number>
std::string rg_lru(Pool& pool, const RgLruArgs<Number>& a) {
  if (a.blocks < 1 || a.width < 1) return "rg_lru needs at least one block with one channel.";
  const int64_t groups = (a.width + kLanes - 1) / kLanes;  // vectors of channels
  const int64_t work = 2 * a.batch * a.tokens * a.width * a.width;
  const int64_t most = std::min(groups, (4 * pool.threads() + a.blocks - 1) / a.blocks);
  const int64_t shares = task_count(work, kTaskWork, most);
  parallel_for(pool, a.blocks * shares, [&](int64_t i) {
    const int64_t share = i % shares, first = groups * share / shares, last = groups * (share + 1) / shares;
    kernels().recurrence.of(Number{})(a, i / shares, first * kLanes, std::min(last * kLanes, a.width));
  });
  return {};
}

template std::string rg_lru(Pool&, const RgLruArgs<float>&);
template std::string rg_lru(Pool&, const RgLruArgs<Bfloat16>&);

}  // namespace gemwright
