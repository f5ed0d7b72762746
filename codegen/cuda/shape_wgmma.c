// Grids, tensor maps and numbers of conv_wgmma.cu and gemm_wgmma.cu.
//
// A box of positions has 64 or as many as a tile has rows, in powers of two by axis: of all such
// boxes the one that covers the images with the fewest, wide ones first. Blocks are turns: parts of
// tiles; how many parts depends on sizes alone.
#include <string.h>

#include "codegen/cuda/tile_plan.h"
#include "codegen/cuda/wgmma_plan.h"
#include "codegen/kernel_args.h"
#include "runtime/pvdm.h"

PvCudaShape pv_shape_conv_wgmma, pv_shape_gemm_wgmma;    // named by select_wgmma.c

_Static_assert(sizeof(WgmmaPlan) <= sizeof((PvCudaGrid *)0)->numbers, "numbers of a launch");

enum { MOST_SPAN = 256 };      // of a box, along an axis of its tensor
enum { PANEL = 64, MULTIPROCESSORS = 132, PART_STEPS = 4, MOST_PARTS = 32, THREADS = 256 };

static uint32_t count(int64_t size, int64_t by)
{
    return (uint32_t)tile_count(size, by);
}

// tiles and steps are known. Baked: rows and columns of a tile. sum: as in kernel_args.h.
static void finish(const PvCudaKernel *kernel, WgmmaPlan plan, int64_t sum, PvCudaGrid *grid)
{
    uint32_t most = plan.steps / PART_STEPS < MOST_PARTS ? plan.steps / PART_STEPS : MOST_PARTS;
    uint32_t wanted =
        plan.tiles > 0 && plan.tiles < MULTIPROCESSORS ? MULTIPROCESSORS / plan.tiles : 1;
    plan.parts = wanted < most ? wanted : most;
    if (plan.parts < 1)
        plan.parts = 1;
    int64_t sums = (int64_t)kernel->baked[TILE_BAKED_M] * kernel->baked[TILE_BAKED_N];
    grid->blocks[0] = plan.tiles * plan.parts;
    if (plan.parts > 1 || sum != 0) {
        grid->blocks[1] = sum < 0 ? 0 : plan.tiles * (uint32_t)(sums / 4 / THREADS);
        grid->workspace = 256 + plan.tiles * (int64_t)plan.parts * sums * (int64_t)sizeof(float);
    }
    memcpy(grid->numbers, &plan, sizeof plan);
}

// Room for the moments of wgmma_stats.h: of images of so many rows.
static void add_stats(const PvCudaKernel *kernel, int64_t images, int64_t rows, int64_t channels,
                      PvCudaGrid *grid)
{
    int64_t piece = grid->blocks[1] ? 4 * THREADS / kernel->baked[TILE_BAKED_N] : WGMMA_PIECE;
    grid->workspace += images * (rows / piece) * (channels * 8 + 4);
}

// ---- convolutions ----

// Logarithms of the extents of the best box of 2^log positions; step: of what is read, between two
// of them. pieces: each image has WGMMA_PIECE rows of a box at least.
static void choose_box(const int64_t size[WGMMA_AXES], const uint32_t step[WGMMA_AXES],
                       uint32_t log, bool pieces, WgmmaPlan *plan)
{
    int64_t best = INT64_MAX;
    for (uint32_t image = 0; image <= log && (!pieces || WGMMA_PIECE << image <= 1 << log); image++)
        for (uint32_t d = 0; d + image <= log; d++)
            for (uint32_t h = 0; h + d + image <= log; h++) {
                uint32_t box[WGMMA_AXES] = {log - h - d - image, h, d, image};
                int64_t boxes = 1;
                bool spans = true;
                for (int axis = 0; axis < WGMMA_AXES; axis++) {
                    boxes *= tile_count(size[axis], INT64_C(1) << box[axis]);
                    spans = spans && step[axis] << box[axis] <= MOST_SPAN;
                }
                if (boxes >= best || !spans)
                    continue;
                best = boxes;
                memcpy(plan->box, box, sizeof box);
            }
    for (int axis = 0; axis < WGMMA_AXES; axis++)
        plan->boxes[axis] = count(size[axis], INT64_C(1) << plan->box[axis]);
}

// Boxes of 64 channels of images; step: NULL, every position.
static PvTensorMap image_map(int64_t address, int64_t channels, const int64_t size[3],
                             int64_t images, int64_t position, int64_t image, const WgmmaPlan *plan,
                             const uint32_t *step)
{
    PvTensorMap map = {.address = (uint64_t)address, .rank = 5, .size[0] = (uint64_t)channels};
    int64_t stride = position * 2;
    map.box[0] = PANEL;
    for (int axis = 0; axis < WGMMA_AXES; axis++) {
        bool of_image = axis == WGMMA_IMAGE;
        map.size[axis + 1] = (uint64_t)(of_image ? images : size[2 - axis]);
        map.stride[axis] = (uint64_t)(of_image && images > 1 ? image * 2 : stride);
        map.box[axis + 1] = 1u << plan->box[axis];
        map.step[axis + 1] = step ? step[axis] : 1;
        stride *= of_image ? 1 : size[2 - axis];
    }
    return map;
}

// w as [c_out, taps, c_in].
static PvTensorMap weight_map(const ConvArgs *args, int64_t taps, uint32_t rows)
{
    uint64_t row = (uint64_t)args->c_in * 2;
    return (PvTensorMap){.address = (uint64_t)args->w, .rank = 3,
                         .size = {(uint64_t)args->c_in, (uint64_t)taps, (uint64_t)args->c_out},
                         .stride = {row, row * (uint64_t)taps}, .box = {PANEL, 1, rows}};
}

void pv_shape_conv_wgmma(const PvCudaKernel *kernel, const int64_t *numbers, PvCudaGrid *grid)
{
    const ConvArgs *args = (const ConvArgs *)numbers;
    uint32_t tile_m = (uint32_t)kernel->baked[TILE_BAKED_M];
    uint32_t tile_n = (uint32_t)kernel->baked[TILE_BAKED_N], log = 6;
    int mode = kernel->baked[TILE_BAKED_MODE];
    bool grad = mode == CONV_DGRAD, of_w = mode == CONV_WGRAD;
    const int64_t *size = grad ? args->in : args->out;
    int64_t taps = args->kernel[0] * args->kernel[1] * args->kernel[2], most_taps = 1;
    int64_t axes[WGMMA_AXES] = {size[2], size[1], size[0], args->images}, in[3];
    uint32_t step[WGMMA_AXES] = {1, 1, 1, 1}, phases = 1, classes = 0;   // classes: a logarithm
    WgmmaPlan plan = {.m_tiles = 1};
    *grid = (PvCudaGrid){.workspace = 0};
    while (!of_w && 1u << log < tile_m)
        log++;
    for (int axis = 0; axis < WGMMA_IMAGE; axis++) {
        int64_t stride = args->stride[2 - axis];
        most_taps *= tile_count(args->kernel[2 - axis], grad ? stride : 1);
        if (grad) {                          // positions of a phase
            axes[axis] = tile_count(axes[axis], stride);
            phases *= (uint32_t)stride;
        } else {
            step[axis] = (uint32_t)stride;
        }
        // where x is up-sampled, a box is of the smaller image
        uint32_t up = (uint32_t)args->x_shift[2 - axis];
        axes[axis] = tile_count(axes[axis], INT64_C(1) << up);
        in[2 - axis] = args->in[2 - axis] >> up;
        classes += up;
    }
    choose_box(axes, step, log - classes, tile_has_stats(&args->stats), &plan);
    uint32_t boxes = plan.boxes[0] * plan.boxes[1] * plan.boxes[2] * plan.boxes[3];
    plan.n_tiles = count(mode == CONV_FPROP ? args->c_out : args->c_in, tile_n);
    if (of_w) {
        plan.m_tiles = count(args->c_out, tile_m);
        plan.tiles = plan.n_tiles * plan.m_tiles * (uint32_t)taps;
        plan.steps = boxes;
    } else {
        plan.chunks = count(grad ? args->c_out : args->c_in, WGMMA_TILE_K);
        plan.tiles = plan.n_tiles * boxes * phases;
        plan.steps = plan.chunks * (uint32_t)most_taps;
    }
    PvTensorMap x = image_map(args->x, args->c_in, in, args->images, args->x_position,
                              args->x_image, &plan, step);
    PvTensorMap y = image_map(args->y, args->c_out, args->out, args->images, args->y_position,
                              args->y_image, &plan, NULL);
    grid->maps[0] = mode == CONV_FPROP ? x : y;
    grid->maps[1] = of_w ? x : weight_map(args, taps, grad ? WGMMA_TILE_K : tile_n);
    finish(kernel, plan, args->sum, grid);
    if (tile_has_stats(&args->stats)) {
        int64_t rows = INT64_C(1) << (plan.box[WGMMA_W] + plan.box[WGMMA_H] + plan.box[WGMMA_D]);
        int64_t of_image = plan.boxes[WGMMA_W] * plan.boxes[WGMMA_H] * plan.boxes[WGMMA_D];
        add_stats(kernel, args->images, of_image * rows << classes, args->c_out, grid);
    }
}

// ---- products ----

// Rows [row] of the reduction [k] of all batch elements; of b values, gates and what lies between.
// A stride of 0 is an axis of one.
static PvTensorMap operand_map(const GemmArgs *args, bool of_b, bool dense_k, uint32_t rows)
{
    int64_t row = of_b ? args->n : args->m, row_stride = of_b ? args->b_n : args->a_m;
    int64_t k_stride = of_b ? args->b_k : args->a_k, address = of_b ? args->b : args->a;
    if (of_b && args->gate) {
        row += args->gate < 0 ? -args->gate : args->gate;
        address += args->gate < 0 ? args->gate * row_stride * 2 : 0;
    }
    int64_t outer = (dense_k ? row_stride : k_stride) * 2;
    int64_t stride[2] = {of_b ? args->b1 : args->a1, of_b ? args->b0 : args->a0};
    int64_t batch[2] = {args->batch1, args->batch0};
    PvTensorMap map = {.address = (uint64_t)address, .rank = 4,
                       .size = {(uint64_t)(dense_k ? args->k : row),
                                (uint64_t)(dense_k ? row : args->k)},
                       .stride[0] = (uint64_t)outer,
                       .box = {PANEL, dense_k ? rows : WGMMA_TILE_K, 1, 1}};
    for (int i = 0; i < 2; i++) {
        bool one = stride[i] == 0 || batch[i] == 1;
        map.size[2 + i] = one ? 1 : (uint64_t)batch[i];
        map.stride[1 + i] = one ? (uint64_t)outer : (uint64_t)stride[i] * 2;
    }
    return map;
}

void pv_shape_gemm_wgmma(const PvCudaKernel *kernel, const int64_t *numbers, PvCudaGrid *grid)
{
    const GemmArgs *args = (const GemmArgs *)numbers;
    uint32_t tile_m = (uint32_t)kernel->baked[TILE_BAKED_M];
    uint32_t tile_n = (uint32_t)kernel->baked[TILE_BAKED_N];
    uint32_t batches = (uint32_t)(args->batch0 * args->batch1);
    uint32_t columns = args->gate ? tile_n / 2 : tile_n;       // of the result
    WgmmaPlan plan = {.n_tiles = count(args->n, columns), .m_tiles = count(args->m, tile_m),
                      .chunks = count(args->k, WGMMA_TILE_K)};
    *grid = (PvCudaGrid){.workspace = 0};
    plan.tiles = plan.n_tiles * plan.m_tiles * (args->sum_batch ? 1 : batches);
    plan.steps = plan.chunks * (args->sum_batch ? batches : 1);
    grid->maps[0] = operand_map(args, false, kernel->baked[WGMMA_BAKED_A_MN] == 0, tile_m);
    grid->maps[1] = operand_map(args, true, kernel->baked[WGMMA_BAKED_B_MN] == 0,
                                args->gate ? PANEL : tile_n);
    finish(kernel, plan, args->sum, grid);
    if (tile_has_stats(&args->stats)) {
        int64_t images = args->batch0 == 1 ? args->m / args->image_rows : args->batch0;
        add_stats(kernel, images, args->image_rows, args->n, grid);
    }
}
