/* What both templates of GroupNorm's gradient share: how tensors are stored, and the sums of
 * channels over images, float2 [images, c, pieces]: of dy and of dy xhat.
 *
 * Included inside a template's namespace after norm_parts.h; no include guard.
 */
typedef NORM_STORED(0) StoredDx;
typedef NORM_STORED(1) StoredDgamma;
typedef NORM_STORED(2) StoredDbeta;
typedef NORM_STORED(3) StoredDy;
typedef NORM_STORED(4) StoredX;
typedef NORM_STORED(7) StoredGamma;
typedef NORM_STORED(8) StoredDgammaAdded;
typedef NORM_STORED(9) StoredDbetaAdded;

template <typename Element> CX_FN float added_to(int64_t added, u32 channel)
{
    return added ? cx_read(((const Element *)added)[channel]) : 0.f;
}

// A channel's dgamma and dbeta, by a warp: all images and pieces.
CX_FN void finish_channel(const GroupNormGradArgs &a, u32 pieces, const float2 *sums, u32 channel)
{
    int lane = threadIdx.x & 31;
    float plain = 0.f, product = 0.f;
    CX_NO_UNROLL
    for (u32 i = lane; i < (u32)a.images * pieces; i += 32) {
        u64 row = (u64)(i / pieces) * (u32)a.c + channel;
        float2 sum = sums[row * pieces + i % pieces];
        plain += sum.x;
        product += sum.y;
    }
    plain = warp_sum(plain);
    product = warp_sum(product);
    if (lane == 0 && a.dbeta)
        cx_write((StoredDbeta *)a.dbeta + channel,
                 plain + added_to<StoredDbetaAdded>(a.dbeta_added, channel));
    if (lane == 0 && a.dgamma)
        cx_write((StoredDgamma *)a.dgamma + channel,
                 product + added_to<StoredDgammaAdded>(a.dgamma_added, channel));
}
