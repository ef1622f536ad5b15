// Bounds that products with 4-bit tiles and their launches share.
#pragma once

namespace pagoda {

constexpr int kMaxW4Stages = 4; // copies under way in a warp of Rows
constexpr int kMaxSmemBytes = 226 << 10; // of a CTA: what Hopper has, less barriers
constexpr int kMaxW4Split = 8;  // CTAs of a cluster, or slabs of columns

} // namespace pagoda
