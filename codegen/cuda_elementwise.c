// The CUDA text of one elementwise kernel.
//
// The same group, pointers and arguments as on the CPU, so that one launch serves both. A thread
// computes four neighbours of the inner axis: 16-byte loads and stores where a pointer is dense
// there and every place it can be at is known to be a multiple of that; operands that do not move
// along the inner axis are read once. All loads come before the stores. Index arithmetic is in 32
// bits, with one division for each outer axis; only offsets are of 64. Whether the inner axis goes
// by fours, and which pointers do, is baked in, beside what the CPU text bakes in.
#include <stdlib.h>

#include "codegen/elementwise.h"

enum { THREADS = 256, MOST_LOADS = 24 };       // of four elements: what registers hold

// Every address of the pointer at which a thread begins is a multiple of four elements, or of 16.
bool cuda_by_fours(const Kern *kern, const Pointer *pointer)
{
    int64_t bytes = 4 * (int64_t)pointer_size(kern, pointer);
    bytes = bytes > 16 ? 16 : bytes;
    if (pointer->inner != INNER_DENSE || pointer->place.a % bytes || pointer->place.c % bytes)
        return false;
    for (uint32_t axis = 0; axis + 1 < kern->rank; axis++)
        if (pointer->stride[axis].n % 4)
            return false;
    return true;
}

bool cuda_inner_fours(const Kern *kern)
{
    return kern->size[kern->rank - 1].n % 4 == 0;
}

// Elements a thread: 4, or 1.
static uint32_t choose_width(const Kern *kern)
{
    uint32_t fours = 0, loads = 0;
    for (uint32_t i = 0; i < kern->pointer_count; i++) {
        fours += cuda_by_fours(kern, &kern->pointers[i]);
        loads += !kern->pointers[i].result && kern->pointers[i].inner != INNER_FIXED;
    }
    return cuda_inner_fours(kern) && fours > 0 && loads <= MOST_LOADS ? 4 : 1;
}

// The type of elements in memory: u16 words if they are stored as bf16.
static const char *memory_type(const Pointer *pointer)
{
    return pointer->place.store == PV_STORE_BF16  ? "CxBf16"
           : pointer->place.store == PV_STORE_F16 ? "CxF16"
                                                  : storage_type(pointer->dtype);
}

// Sizes, the position of this thread, and the check that it has one.
static void write_position(const Kern *kern, FILE *out, uint32_t width)
{
    uint32_t first = kern->pointer_count + kern->real_count, inner = kern->rank - 1;
    for (uint32_t axis = 0; axis < kern->rank; axis++)
        fprintf(out, "    const u32 n%u = (u32)(a.at[%u]%s);\n", axis, first + axis,
                axis == inner && width == 4 ? " / 4" : "");
    fprintf(out, "    const u32 unit = block * %d + threadIdx.x;\n    if (unit >= n0", THREADS);
    for (uint32_t axis = 1; axis < kern->rank; axis++)
        fprintf(out, " * n%u", axis);
    fprintf(out, ")\n        return;\n");
    for (uint32_t axis = inner; axis > 0; axis--) {
        const char *whole = axis == inner ? "unit" : arena_printf(kern->lower->work->arena,
                                                                  "row%u", axis + 1);
        fprintf(out, "    const u32 row%u = %s / n%u, i%u = %s - row%u * n%u;\n", axis, whole,
                axis, axis, whole, axis, axis);
    }
    fprintf(out, "    const u32 i0 = %s;\n", inner ? "row1" : "unit");
    fprintf(out, "    const int64_t i = (int64_t)i%u%s;\n", inner, width == 4 ? " * 4" : "");
}

// Where each pointer begins for the outer axes; what does not move along the inner one is read.
static void write_rows(const Kern *kern, FILE *out)
{
    uint32_t inner = kern->rank - 1, arg = kern->pointer_count + kern->real_count + kern->rank;
    for (uint32_t i = 0; i < kern->pointer_count; i++) {
        const Pointer *pointer = &kern->pointers[i];
        const char *type = memory_type(pointer), *constant = pointer->result ? "" : "const ";
        fprintf(out, "    %s%s *const r%u = (%s%s *)a.at[%u]", constant, type, i, constant,
                type, i);
        for (uint32_t axis = 0; axis < inner; axis++)
            if (pointer->stride[axis].n != 0)
                fprintf(out, " + i%u * a.at[%u]", axis, arg++);
        fprintf(out, ";\n");
        if (pointer->inner == INNER_STRIDED)
            fprintf(out, "    const int64_t s%u = a.at[%u];\n", i, arg++);
        if (pointer->inner == INNER_FIXED && !pointer->result)
            fprintf(out, "    const %s x%u = cx_value(r%u[0])%s;\n", c_type(pointer->dtype), i, i,
                    pointer->dtype == DT_BOOL ? " != 0" : "");
    }
}

// v = the elements of this thread.
static void write_loads(const Kern *kern, FILE *out, uint32_t width)
{
    for (uint32_t i = 0; i < kern->pointer_count; i++) {
        const Pointer *pointer = &kern->pointers[i];
        const char *type = storage_type(pointer->dtype);
        if (pointer->result || pointer->inner == INNER_FIXED)
            continue;
        fprintf(out, "    %s v%u[%u];\n", type, i, width);
        if (width == 4 && cuda_by_fours(kern, pointer)) {
            fprintf(out, "    cx_load4(v%u, r%u + i);\n", i, i);
            continue;
        }
        // the neighbour of a pair is read here, at width 1; vectors are read as they lie
        const char *index = width == 1 ? pointer->swap ? "(i ^ 1)" : "i" : "(i + e)";
        if (width == 4)
            fprintf(out, "    CX_UNROLL\n    for (int e = 0; e < 4; e++)\n    ");
        fprintf(out, "    v%u[%s] = cx_value(r%u[%s", i, width == 4 ? "e" : "0", i, index);
        if (pointer->inner == INNER_STRIDED)
            fprintf(out, " * s%u", i);
        fprintf(out, "]);\n");
    }
}

static void write_elements(const Kern *kern, FILE *out, uint32_t width)
{
    uint32_t results = kern->group->result_count;
    for (uint32_t i = 0; i < results; i++)
        fprintf(out, "    %s y%u[%u];\n", storage_type(kern->pointers[i].dtype), i, width);
    fprintf(out, "    CX_UNROLL\n    for (int e = 0; e < %u; e++) {\n", width);
    for (uint32_t i = results; i < kern->pointer_count; i++) {
        const Pointer *pointer = &kern->pointers[i];
        if (pointer->inner != INNER_FIXED)
            fprintf(out, "        const %s x%u = v%u[%s]%s;\n", c_type(pointer->dtype), i, i,
                    pointer->swap && width == 4 ? "e ^ 1" : "e",
                    pointer->dtype == DT_BOOL ? " != 0" : "");
    }
    write_statements(kern, out, "        ");
    for (uint32_t i = 0; i < results; i++)
        fprintf(out, "        y%u[e] = t%u;\n", i, member_of(kern, kern->group->results[i]));
    fprintf(out, "    }\n");
    for (uint32_t i = 0; i < results; i++) {
        if (width == 4 && cuda_by_fours(kern, &kern->pointers[i]))
            fprintf(out, "    cx_store4(r%u + i, y%u);\n", i, i);
        else
            fprintf(out, "    CX_UNROLL\n    for (int e = 0; e < %u; e++)\n"
                         "        cx_set(r%u + %s, y%u[e]);\n", width, i,
                    kern->pointers[i].inner == INNER_STRIDED
                        ? arena_printf(kern->lower->work->arena, "(i + e) * s%u", i)
                        : "i + e",
                    i);
    }
}

// Loads and stores of 16 bytes that the text asks for.
static void count_accesses(const Kern *kern, uint32_t width, CudaChoice *choice)
{
    for (uint32_t i = 0; width == 4 && i < kern->pointer_count; i++) {
        const Pointer *pointer = &kern->pointers[i];
        if (cuda_by_fours(kern, pointer))
            *(pointer->result ? &choice->stores_16 : &choice->loads_16) +=
                (uint32_t)pointer_size(kern, pointer) / 4;
    }
}

char *cuda_elementwise_text(const Kern *kern, uint32_t args, CudaChoice *choice)
{
    uint32_t width = choose_width(kern);
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        bug("out of memory");
    fprintf(out, "struct Args {\n    int64_t at[%u];\n};\n", args);
    fprintf(out, "extern \"C\" __global__ void __launch_bounds__(%d)\n"
                 "    CX_NAME(const __grid_constant__ CxLaunch<Args> p)\n{\n", THREADS);
    fprintf(out, "    u32 block;\n    const Args &a = p.args[cx_segment(p.head, &block)];\n");
    write_position(kern, out, width);
    for (uint32_t i = 0; i < kern->real_count; i++)
        fprintf(out, "    const PvReal c%u = pv_real(a.at[%u]);\n", i, kern->pointer_count + i);
    write_rows(kern, out);
    write_loads(kern, out, width);
    write_elements(kern, out, width);
    fprintf(out, "}\n");
    if (fclose(out) != 0)
        bug("out of memory");
    *choice = (CudaChoice){.definitions = "", .shape = "pv_shape_elementwise", .phases = 1,
                           .threads = {THREADS}};
    choice->baked[0] = (int32_t)(kern->pointer_count + kern->real_count);
    choice->baked[1] = (int32_t)kern->rank;
    choice->baked[2] = (int32_t)width;
    count_accesses(kern, width, choice);
    return text;
}
