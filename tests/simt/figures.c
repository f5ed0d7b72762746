/* Compiles every kernel of codegen/cuda for sm_80 and sm_90a with NVRTC and looks into the cubins.
 *
 * Usage: kernel_figures ROOT [--update]. Each must compile without a warning, use no local memory,
 * fit a multiprocessor, have the instructions its template promises and none that it forbids.
 * Registers, occupancy and instruction counts are compared with tests/simt/figures.txt, so that a
 * change shows in review; they belong to one version of NVRTC and are not compared under another.
 * PTX assembled for another architecture must be what the text gives there.
 * Without NVRTC everything is skipped and the reason told. Ends with `N passed, N failed, N
 * skipped`.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "codegen/cubin.h"
#include "codegen/nvrtc.h"

typedef struct Row {
    const char *file, *options; // options: definitions, separated by blanks; of a template that
                                // plans choose they begin with its name
    int threads, shared;        // of a launch; bytes of dynamic shared memory
    bool sm_80;                 // else sm_90a only
    const char *needs, *forbids;
} Row;

#define TILE(half, m, n, groups, stages, a_mn, b_mn)                                               \
    "TILE_HALF=" #half " TILE_M=" #m " TILE_N=" #n " WG_GROUPS=" #groups " WG_STAGES=" #stages     \
    " WG_A_MN=" #a_mn " WG_B_MN=" #b_mn " WG_SEGMENTS=4"
#define CONV_TILE(half, m, n, groups, stages, a_mn, b_mn)                                          \
    TILE(half, m, n, groups, stages, a_mn, b_mn)                                                   \
    " CONV_STRIDED=0 CONV_ACT=1 CONV_RESULT=" #half " CONV_RESIDUAL=" #half " CONV_BIAS=0"
#define GEMM_TILE(half, m, n, groups, stages, a_mn, b_mn)                                          \
    TILE(half, m, n, groups, stages, a_mn, b_mn)                                                   \
    " GEMM_ACT=0 GEMM_C=" #half " GEMM_RESIDUAL=" #half " GEMM_BIAS=0 GEMM_SUM=0 GEMM_C_4=1"
#define MMA_TILE(size, a_k, b_k)                                                                   \
    "TILE_M=" #size " TILE_N=" #size " WARP_M=64 WARP_N=32 TILE_HALF=1 GEMM_A_K=" #a_k             \
    " GEMM_B_K=" #b_k " GEMM_C_4=1 GEMM_ACT=0 GEMM_SUM=0 GEMM_A_8=1 GEMM_B_8=1 GEMM_A=1 GEMM_B=1"  \
    " GEMM_C=1 GEMM_RESIDUAL=1 GEMM_BIAS=0"
#define MMA_CONV(size, mode)                                                                       \
    "TILE_M=" #size " TILE_N=" #size " WARP_M=64 WARP_N=32 TILE_HALF=1 CONV_MODE=" #mode           \
    " CONV_LAST=1 CONV_AXES=2 CONV_STRIDED=0 CONV_ACT=0 CONV_X_8=1 CONV_W_8=1 CONV_W_LAST=1"       \
    " CONV_OUT_4=1 CONV_SOURCE=1 CONV_WEIGHT=1 CONV_RESULT=1 CONV_RESIDUAL=1 CONV_BIAS=0"
static const Row rows[] = {
    // tiles as tile_select.h has them
    {"gemm_bf16.cu", "CX_NAME=gemm " MMA_TILE(128, 1, 1), 256, 49216, true, "HMMA LDSM LDGSTS",
     "HGMMA"},
    {"gemm_bf16.cu", "CX_NAME=gemm " MMA_TILE(64, 0, 0), 64, 24640, true, "HMMA LDSM LDGSTS",
     "HGMMA"},
    {"conv_bf16.cu", "CX_NAME=fprop " MMA_CONV(128, 0), 256, 49552, true, "HMMA LDSM LDGSTS",
     "HGMMA"},
    {"conv_bf16.cu", "CX_NAME=dgrad " MMA_CONV(64, 1), 64, 24976, true, "HMMA LDSM LDGSTS",
     "HGMMA"},
    {"conv_bf16.cu", "CX_NAME=wgrad " MMA_CONV(64, 2), 64, 24832, true, "HMMA LDSM LDGSTS",
     "HGMMA"},
    {"gemm_bf16.cu", "CX_NAME=gemm GEMM_IMAGE_ROWS=1 TILE_NORM=1 " MMA_TILE(128, 1, 1), 256, 49216,
     true, "HMMA LDSM LDGSTS", "HGMMA"},
    {"gemm_bf16.cu", "CX_NAME=gemm GEMM_IMAGE_ROWS=1 TILE_NORM=2 TILE_STATS=1 " MMA_TILE(64, 1, 1),
     64, 24640, true, "HMMA LDSM LDGSTS ATOM", "HGMMA"},
    {"conv_bf16.cu", "CX_NAME=fprop TILE_STATS=1 " MMA_CONV(128, 0), 256, 49552, true,
     "HMMA LDSM LDGSTS ATOM", "HGMMA"},
    {"conv_bf16.cu", "CX_NAME=fprop CONV_RESAMPLED=1 " MMA_CONV(128, 0), 256, 49552, true,
     "HMMA LDSM LDGSTS", "HGMMA"},
    {"gemm_bf16.cu", "CX_NAME=gemm GEMM_GATE=1 " MMA_TILE(128, 1, 1), 256, 49216, true,
     "HMMA LDSM LDGSTS", "HGMMA"},
    // tile, groups of warps and stages as select_wgmma.c has them
    {"conv_wgmma.cu", "CX_NAME=fprop CONV_MODE=0 TILE_STATS=2 " CONV_TILE(1, 256, 128, 2, 4, 0, 0),
     384, 231488, false, "HGMMA UTMALDG SYNCS ATOM", "HMMA LDGSTS"},
    {"conv_wgmma.cu", "CX_NAME=fprop CONV_MODE=0 " CONV_TILE(1, 256, 128, 2, 4, 0, 0), 384, 231488,
     false, "HGMMA UTMALDG SYNCS", "HMMA LDGSTS"},
    {"conv_wgmma.cu",
     "CX_NAME=fprop CONV_MODE=0 CONV_RESAMPLED=1 " CONV_TILE(1, 256, 128, 2, 4, 0, 0), 384, 231488,
     false, "HGMMA UTMALDG SYNCS", "HMMA LDGSTS"},
    {"conv_wgmma.cu", "CX_NAME=dgrad CONV_MODE=1 " CONV_TILE(1, 128, 128, 2, 5, 0, 1), 384, 198736,
     false, "HGMMA UTMALDG SYNCS", "HMMA LDGSTS"},
    {"conv_wgmma.cu", "CX_NAME=wgrad CONV_MODE=2 " CONV_TILE(1, 128, 256, 2, 4, 1, 1), 384, 231488,
     false, "HGMMA UTMALDG SYNCS", "HMMA LDGSTS"},
    {"conv_wgmma.cu", "CX_NAME=wgrad CONV_MODE=2 " CONV_TILE(1, 64, 128, 1, 3, 1, 1), 256, 91184,
     false, "HGMMA UTMALDG SYNCS", "HMMA LDGSTS"},
    {"gemm_wgmma.cu", "CX_NAME=gemm " GEMM_TILE(1, 256, 128, 2, 4, 0, 0), 384, 231488, false,
     "HGMMA UTMALDG SYNCS", "HMMA LDGSTS"},
    {"gemm_wgmma.cu", "CX_NAME=gemm GEMM_GATE=1 " GEMM_TILE(1, 256, 128, 2, 4, 0, 0), 384, 231488,
     false, "HGMMA UTMALDG SYNCS", "HMMA LDGSTS"},
    {"gemm_wgmma.cu", "CX_NAME=gemm GEMM_GATE=1 " GEMM_TILE(1, 128, 256, 2, 4, 0, 1), 384, 231488,
     false, "HGMMA UTMALDG SYNCS", "HMMA LDGSTS"},
    {"gemm_wgmma.cu", "CX_NAME=gemm " GEMM_TILE(1, 256, 64, 2, 4, 0, 1), 384, 182336, false,
     "HGMMA UTMALDG SYNCS", "HMMA LDGSTS"},
    {"conv_wgmma.cu", "CX_NAME=fprop CONV_MODE=0 " CONV_TILE(2, 256, 128, 2, 4, 0, 0), 384, 231488,
     false, "HGMMA UTMALDG SYNCS", "HMMA LDGSTS"},
    {"gemm_wgmma.cu", "CX_NAME=gemm " GEMM_TILE(2, 128, 64, 2, 6, 1, 1), 384, 182368, false,
     "HGMMA UTMALDG SYNCS", "HMMA LDGSTS"},
};
enum { ROWS = sizeof rows / sizeof *rows, MOST_JOBS = 2 * ROWS, MOST_TEXT = 1 << 16, LINE = 512 };
static const char *const headers[] = {
    "cx.h",         "cx_hopper.h",    "cx_wgmma.h",     "storage.h",   "cx_launch.h",
    "tile_out.h",   "tile_walk.h",    "gemm_out.h",     "conv_problem.h", "norm_load.h",
    "norm_stats.h", "norm_factors.h", "wgmma_plan.h", "mma_product.h", "wgmma_product.h",
    "wgmma_stats.h", "tile_phases.h", "../kernel_args.h"};
enum { HEADERS = sizeof headers / sizeof *headers };

static int passed, failed;

static char *read_text(const char *path) // to be freed; "" where there is no such file
{
    char *text = calloc(MOST_TEXT, 1);
    FILE *file = fopen(path, "r");
    assert(text);
    if (file) {
        size_t bytes = fread(text, 1, MOST_TEXT - 1, file);
        if (bytes == MOST_TEXT - 1)
            abort();
        fclose(file);
    }
    return text;
}

static char *read_kernel_file(const char *root, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/codegen/cuda/%s", root, name);
    return read_text(path);
}

static bool has_class(const char *list, const char *class_name)
{
    size_t length = strlen(class_name);
    for (const char *at = list; (at = strstr(at, class_name)) != NULL; at += length)
        if ((at == list || at[-1] == ' ') && (at[length] == 0 || at[length] == ' '))
            return true;
    return false;
}

// What is wrong with a kernel; NULL: nothing.
static const char *judge(const Row *row, const CubinKernel *kernel, int blocks)
{
    static char text[128];
    if (kernel->stack != 0)
        return "it uses local memory";
    if (blocks == 0)
        return "it does not fit a multiprocessor";
    for (int i = 0; i < CUBIN_CLASSES && cubin_classes[i]; i++) {
        const char *name = cubin_classes[i];
        bool needed = has_class(row->needs, name);
        bool forbidden =
            has_class(row->forbids, name) || (!needed && has_class("LDL STL ATOM", name));
        if (forbidden ? kernel->count[i] != 0 : needed && !kernel->count[i]) {
            snprintf(text, sizeof text, "%s %s", forbidden ? "it has" : "it lacks", name);
            return text;
        }
    }
    if (has_class(row->needs, "HMMA") && !cubin_feeds_mma(kernel))
        return "less than 2.5 HMMA a LDSM";
    return NULL;
}

static void describe(const Row *row, const char *arch, const CubinKernel *kernel, int blocks,
                     const char *limit, char *line)
{
    int at = snprintf(line, LINE, "%s%s%s %s: registers %d, blocks %d (%s), code %zu", kernel->name,
                      *row->options ? " " : "", row->options, arch, kernel->registers, blocks,
                      limit, kernel->code_bytes);
    for (int i = 0; i < CUBIN_CLASSES && cubin_classes[i]; i++)
        if (kernel->count[i])
            at += snprintf(line + at, (size_t)(LINE - at), ", %s %d", cubin_classes[i],
                           kernel->count[i]);
    snprintf(line + at, (size_t)(LINE - at), "\n");
}

// The first phase of a kernel among the functions of a cubin; false: it cannot be read.
static bool read_kernel(const NvrtcJob *job, int *arch, CubinKernel *kernel)
{
    CubinKernel found[2];
    int count = cubin_read(job->cubin, job->cubin_bytes, arch, found, 2);
    for (int i = 0; i < count && i < 2; i++)
        if (i == 0 || strlen(found[i].name) < strlen(kernel->name))
            *kernel = found[i];
    return count == 1 || count == 2;
}

// Checks one compiled job and appends its line to `out`.
static void check_job(const Row *row, const NvrtcJob *job, char *out)
{
    CubinKernel kernel;
    char line[LINE];
    int arch;
    const char *wrong = NULL, *limit;
    if (!job->done || nvrtc_log_warns(job->log))
        wrong = job->log;
    else if (!read_kernel(job, &arch, &kernel))
        wrong = "its cubin could not be read";
    if (!wrong) {
        int blocks = cubin_occupancy(&kernel, arch, row->threads, row->shared, &limit);
        wrong = judge(row, &kernel, blocks);
        describe(row, job->arch, &kernel, blocks, limit, line);
        strcat(out, line);
    }
    ++*(wrong ? &failed : &passed);
    if (wrong)
        printf("FAIL %s %s %s: %s\n", row->file, row->options, job->arch, wrong);
}

// Seeded faults of the static checks: registers that do not suffice, an array with computed
// indices.
static const char spilling[] =
    "extern \"C\" __global__ void __launch_bounds__(1024) f(float *a, int n) {\n"
    "  float v[96];\n"
    "  #pragma unroll\n"
    "  for (int j = 0; j < 96; j++) v[j] = a[threadIdx.x + j * 1024];\n"
    "  for (int k = 0; k < n; k++)\n"
    "    #pragma unroll\n"
    "    for (int j = 0; j < 96; j++) v[j] = v[j] * v[(j + 1) % 96] + a[k];\n"
    "  #pragma unroll\n"
    "  for (int j = 0; j < 96; j++) a[threadIdx.x + j * 1024] = v[j];\n"
    "}\n";
static const char indexing[] = "extern \"C\" __global__ void f(float *a, int n) {\n"
                               "  float v[32];\n"
                               "  for (int j = 0; j < 32; j++) v[j] = a[j];\n"
                               "  for (int j = 0; j < n; j++) v[j * 7 & 31] += v[j & 31];\n"
                               "  for (int j = 0; j < 32; j++) a[j] = v[j];\n"
                               "}\n";

static void check_seeded_faults(void)
{
    NvrtcJob jobs[2] = {{.name = "spilling.cu", .text = spilling, .arch = "sm_80"},
                        {.name = "indexing.cu", .text = indexing, .arch = "sm_90a"}};
    static const Row row = {"seeded.cu", "", 1024, 0, true, "", ""};
    nvrtc_compile(jobs, 2, 2);
    for (int i = 0; i < 2; i++) {
        CubinKernel kernel;
        int arch;
        bool found = jobs[i].done && nvrtc_log_warns(jobs[i].log) &&
                     cubin_read(jobs[i].cubin, jobs[i].cubin_bytes, &arch, &kernel, 1) == 1 &&
                     judge(&row, &kernel, 1) != NULL;
        // a cut cubin must be refused or read in part, never beyond its end
        for (size_t bytes = 0; bytes < jobs[i].cubin_bytes; bytes += 61)
            cubin_read(jobs[i].cubin, bytes, &arch, &kernel, 1);
        ++*(found ? &passed : &failed);
        if (!found)
            printf("FAIL %s: local memory was not noticed: %s\n", jobs[i].name, jobs[i].log);
        nvrtc_free_job(&jobs[i]);
    }
}

// Two kernels in the manner of those of plans, and one with a function beside it.
static const char shared_sums[] =
    "struct Args { const float *x[8]; float *y; unsigned n; };\n"
    "extern \"C\" __global__ void __launch_bounds__(256, 2) first("
    "const __grid_constant__ Args a) {\n"
    "  extern __shared__ __align__(1024) unsigned char memory[];\n"
    "  float *sums = (float *)memory, sum = 0;\n"
    "  for (unsigned i = threadIdx.x; i < a.n; i += 256) sum += a.x[blockIdx.x % 8][i];\n"
    "  sums[threadIdx.x] = sum;\n"
    "  __syncthreads();\n"
    "  if (threadIdx.x < a.n) a.y[threadIdx.x] = sums[threadIdx.x ^ 1] / sum;\n"
    "}\n"
    "extern \"C\" __global__ void __launch_bounds__(64) second(const __grid_constant__ Args a) {\n"
    "  a.y[threadIdx.x] = expf(a.x[0][threadIdx.x]);\n"
    "}\n";
static const char calling[] =
    "struct Args { float *x; };\n"
    "__device__ __noinline__ float function(float x) { return expf(x) + 1.f; }\n"
    "extern \"C\" __global__ void f(const __grid_constant__ Args a) { *a.x = function(*a.x); }\n";

static void expect(bool holds, const char *what)
{
    ++*(holds ? &passed : &failed);
    if (!holds)
        printf("FAIL %s\n", what);
}

// PTX of sm_80 assembled for sm_90a is the cubin that the text gives; what cannot be assembled is
// compiled.
static void check_assembly(void)
{
    NvrtcJob jobs[] = {
        {.name = "sums.cu", .text = shared_sums, .arch = "sm_90a", .older = &jobs[2]},
        {.name = "sums.cu", .text = shared_sums, .arch = "sm_90a"},
        {.name = "sums.cu", .text = shared_sums, .arch = "sm_80", .wants_ptx = true},
        {.name = "calling.cu", .text = calling, .arch = "sm_80", .wants_ptx = true, .weight = 1},
        {.name = "calling.cu", .text = calling, .arch = "sm_90a", .older = &jobs[3]},
        {.name = "sums.cu", .text = shared_sums, .arch = "sm_90a", .older_ptx = "no PTX"},
    };
    const int count = sizeof jobs / sizeof *jobs;
    expect(nvrtc_compile(jobs, count, 2), "programs of tests are compiled");
    expect(jobs[0].assembled && !jobs[1].assembled, "PTX of kernels is assembled");
    for (int i = 0; i < count; i += 5)
        expect(jobs[i].cubin_bytes == jobs[1].cubin_bytes &&
                   memcmp(jobs[i].cubin, jobs[1].cubin, jobs[1].cubin_bytes) == 0,
               "assembled, compiled: one cubin");
    expect(jobs[4].done && !jobs[4].assembled, "PTX of functions is left to the compiler");
    expect(jobs[5].done && !jobs[5].assembled, "what is no PTX is left to the compiler");
    for (int i = 0; i < count; i++)
        nvrtc_free_job(&jobs[i]);
}

// Compares with the golden file, whose first line has NVRTC's version.
static void compare(const char *root, const char *figures, bool update)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/simt/figures.txt", root);
    if (update) {
        FILE *file = fopen(path, "w");
        bool written = file && fputs(figures, file) >= 0;
        if (!file || fclose(file) != 0 || !written)
            failed++;
        return;
    }
    char *golden = read_text(path);
    size_t version = strcspn(figures, "\n");
    if (strncmp(golden, figures, version + 1) != 0) {
        printf("figures are not compared: they are of %.*s, this is %.*s\n",
               (int)strcspn(golden, "\n"), golden, (int)version, figures);
    } else if (strcmp(golden, figures) != 0) {
        failed++;
        printf("FAIL figures differ from tests/simt/figures.txt (--update writes it); now:\n%s",
               figures);
    } else {
        passed++;
    }
    free(golden);
}

// The text of a row, behind its definitions and what the programs of plans include.
static char *row_text(const char *root, const Row *row)
{
    if (!*row->options)
        return read_kernel_file(root, row->file);
    char *text = calloc(MOST_TEXT, 1);
    assert(text);
    strcat(text, "#include \"cx_launch.h\"\n#include \"cx_hopper.h\"\n");
    for (const char *at = row->options; *at;) {
        size_t length = strcspn(at, " "), name = strcspn(at, "=");
        snprintf(text + strlen(text), MOST_TEXT - strlen(text), "#define %.*s %.*s\n", (int)name,
                 at, (int)(length - name - 1), at + name + 1);
        at += length + (at[length] == ' ');
    }
    if (strncmp(row->options, "CX_NAME=", 8) == 0)
        strcat(text, "#define CX_JOIN(name) name##_1\n#define CX_NEXT(name) CX_JOIN(name)\n"
                     "#define CX_NAME_1 CX_NEXT(CX_NAME)\n");
    char *file = read_kernel_file(root, row->file);
    assert(strlen(text) + strlen(file) < MOST_TEXT);
    strcat(text, file);
    free(file);
    return text;
}

// Fills the jobs of all rows and architectures; returns how many there are.
static int make_jobs(const char *root, const NvrtcHeader *texts, NvrtcJob *jobs, const Row **row_of)
{
    int count = 0;
    for (int i = 0; i < ROWS; i++)
        for (int hopper = !rows[i].sm_80; hopper < 2; hopper++) {
            row_of[count] = &rows[i];
            jobs[count++] = (NvrtcJob){.name = rows[i].file,
                                       .text = row_text(root, &rows[i]),
                                       .arch = hopper ? "sm_90a" : "sm_80",
                                       .headers = texts,
                                       .header_count = HEADERS};
        }
    return count;
}

int main(int argc, char **argv)
{
    static NvrtcJob jobs[MOST_JOBS];
    static char figures[MOST_JOBS * LINE];
    const Row *row_of[MOST_JOBS];
    NvrtcHeader texts[HEADERS];
    int major, minor;
    if (argc < 2)
        return 2;
    const char *missing = nvrtc_open();
    if (missing) {
        printf("skipped: %s\n0 passed, 0 failed, 1 skipped\n", missing);
        return 0;
    }
    for (int i = 0; i < HEADERS; i++)
        texts[i] = (NvrtcHeader){headers[i][0] == '.' ? headers[i] + 3 : headers[i],
                                 read_kernel_file(argv[1], headers[i])};
    int count = make_jobs(argv[1], texts, jobs, row_of);
    nvrtc_compile(jobs, count, 2);
    nvrtc_version(&major, &minor);
    snprintf(figures, LINE, "NVRTC %d.%d\n", major, minor);
    double seconds = 0;
    for (int i = 0; i < count; i++) {
        check_job(row_of[i], &jobs[i], figures);
        seconds += jobs[i].seconds;
        free((void *)jobs[i].text);
        nvrtc_free_job(&jobs[i]);
    }
    for (int i = 0; i < HEADERS; i++)
        free((void *)texts[i].text);
    check_seeded_faults();
    check_assembly();
    compare(argv[1], figures, argc > 2 && strcmp(argv[2], "--update") == 0);
    printf("%d cubins in %.1f s of NVRTC\n%d passed, %d failed\n", count, seconds, passed, failed);
    return failed != 0;
}
