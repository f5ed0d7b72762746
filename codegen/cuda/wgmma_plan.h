/* What shape_wgmma.c computes of a launch, and conv_wgmma.cu and gemm_wgmma.cu read: the numbers of
 * CxMaps. Included inside the templates' namespaces too; no include guard.
 *
 * The positions of a tile of a convolution, or of a step of wgrad, are a box of the images' axes w,
 * h, d, image, whose extents are powers of two; what of it lies outside an image is 0 when it is
 * read, and is not written.
 */
enum { WGMMA_TILE_K = 64 };   // of the reduction, a step
enum { WGMMA_PIECE = 16 };    // rows of one image that statistics are taken of at a time
// baked[] of products, behind TILE_BAKED_N
enum { WGMMA_BAKED_A_MN = 2, WGMMA_BAKED_B_MN };
enum { WGMMA_W, WGMMA_H, WGMMA_D, WGMMA_IMAGE, WGMMA_AXES };

typedef struct {
    unsigned tiles;              // of the result
    unsigned parts;              // of the reduction; each part of a tile is a turn of a block
    unsigned steps;              // of the reduction, at most
    unsigned n_tiles;            // of the result's columns, the fastest
    unsigned m_tiles;            // wgrad, products: of its rows, the next
    unsigned chunks;             // steps of a tap, or of a batch element
    unsigned box[WGMMA_AXES];    // convolutions: logarithms of the extents of a box
    unsigned boxes[WGMMA_AXES];  // convolutions: how many there are
} WgmmaPlan;
