// Bounds that the two products with rings of 4-bit tiles share.
#pragma once

namespace pagoda {

constexpr int kMaxW4Stages = 4; // copies under way in a warp
constexpr int kMaxSmemBytes = 226 << 10; // of a CTA: what Hopper has, less barriers
constexpr int kMaxW4Split = 8;  // CTAs of a cluster

} // namespace pagoda
