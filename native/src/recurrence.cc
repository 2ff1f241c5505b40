#include "recurrence.h"

#include <algorithm>

#include "kernels.h"
#include "ops.h"

namespace gemwright {

constexpr int64_t kPartWork = 1 << 16;  // products in a part of the loop, some tens of microseconds

template <class Number>
std::string rg_lru(Pool& pool, const RgLruArgs<Number>& a) {
  if (a.blocks < 1 || a.width < 1) return "rg_lru was given no channels.";
  const int64_t groups = (a.width + kLanes - 1) / kLanes;  // of channels that a vector holds
  const int64_t work = 2 * a.batch * a.tokens * a.width * a.width;
  const int64_t most = std::min(groups, (4 * pool.threads() + a.blocks - 1) / a.blocks);
  const int64_t shares = std::clamp<int64_t>(work / kPartWork, 1, most);
  parallel_for(pool, a.blocks * shares, [&](int64_t i) {
    const int64_t share = i % shares, first = groups * share / shares, last = groups * (share + 1) / shares;
    kernels().recurrence.of(Number{})(a, i / shares, first * kLanes, std::min(last * kLanes, a.width));
  });
  return {};
}

template std::string rg_lru(Pool&, const RgLruArgs<float>&);
template std::string rg_lru(Pool&, const RgLruArgs<Bfloat16>&);

}  // namespace gemwright
