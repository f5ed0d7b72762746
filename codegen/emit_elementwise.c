// One kernel for a group of elementwise nodes.
//
// The iteration space is the group's; every operand is a pointer with strides. Neighbouring axes
// are joined where all pointers allow it, so most kernels have one or two axes left. The last one
// is the inner loop, cut into blocks, `omp simd`; (rows x blocks) are shared out among threads.
// Baked into the text: the expression, the number of axes, and how each pointer moves along the
// inner axis (not at all, densely, by a stride). Sizes, strides and unusual constants are
// arguments, so layers of different sizes share a kernel; equal texts are one.
//
// The axes are walked in the order in which the first result lies, so that it is dense along the
// inner one. All loads of an element come before its stores; so a result may lie where an operand
// of the same layout dies. Which one, is told to the planner.
#include <stdlib.h>
#include <string.h>

#include "codegen/elementwise.h"

enum { BLOCK = 4096, PARALLEL = 16384 };

static Pointer *find_pointer(Kern *kern, Val val, bool swap)
{
    for (uint32_t i = kern->group->result_count; i < kern->pointer_count; i++)
        if (kern->pointers[i].val == val && kern->pointers[i].swap == swap)
            return &kern->pointers[i];
    return NULL;
}

static Pointer *add_pointer(Kern *kern, Val val)
{
    if (kern->pointer_count == MAX_POINTERS)
        bug("an elementwise kernel with more than %d operands", MAX_POINTERS);
    Pointer *pointer = &kern->pointers[kern->pointer_count++];
    *pointer = (Pointer){.val = val, .dtype = val_type(kern->lower->graph, val)->dtype};
    return pointer;
}

static void add_load(Kern *kern, Val val, bool swap)
{
    if (val_get(kern->lower->graph, val)->op == OP_CONST || find_pointer(kern, val, swap))
        return;
    const Type *type = val_type(kern->lower->graph, val);
    View view = view_of(kern->lower->work, val);
    Pointer *pointer = add_pointer(kern, val);
    pointer->swap = swap;
    pointer->place = view_place(kern->lower, &view, type->dtype);
    for (uint32_t axis = 0; type->rank > 0 && axis < type->rank; axis++)
        pointer->stride[axis] = view.stride[axis];
}

static void add_pointers(Kern *kern)
{
    Lower *lower = kern->lower;
    const Group *group = kern->group;
    for (uint32_t i = 0; i < group->result_count; i++) {
        Pointer *pointer = add_pointer(kern, group->results[i]);
        pointer->result = true;
        pointer->place = result_place(lower, group->results[i]);
        View view = view_of(lower->work, group->results[i]);
        memcpy(pointer->stride, view.stride, sizeof view.stride);
    }
    for (uint32_t i = 0; i < group->member_count; i++) {
        const Node *node = graph_node(lower->graph, group->members[i]);
        for (uint32_t k = 0; k < node->nin; k++)
            if (node->op == OP_SWAP_PAIRS || !group_inlines(lower->work, kern->number, node->in[k]))
                add_load(kern, node->in[k], node->op == OP_SWAP_PAIRS);
    }
}

// ---- axes ----

static bool joins(const Kern *kern, uint32_t outer, uint32_t inner)
{
    for (uint32_t i = 0; i < kern->pointer_count; i++)
        if (!axes_merge(kern->pointers[i].stride[outer], kern->pointers[i].stride[inner],
                        kern->size[inner]))
            return false;
    return true;
}

static void move_axis(Kern *kern, uint32_t to, uint32_t from)
{
    kern->size[to] = kern->size[from];
    for (uint32_t i = 0; i < kern->pointer_count; i++)
        kern->pointers[i].stride[to] = kern->pointers[i].stride[from];
}

static bool is_longer(Dim x, Dim y)
{
    return x.batch != y.batch ? x.batch > y.batch : x.n > y.n;
}

static void swap_axes(Kern *kern, uint32_t x, uint32_t y)
{
    Dim size = kern->size[x];
    kern->size[x] = kern->size[y];
    kern->size[y] = size;
    for (uint32_t i = 0; i < kern->pointer_count; i++) {
        Dim *stride = kern->pointers[i].stride, other = stride[x];
        stride[x] = stride[y];
        stride[y] = other;
    }
}

// Sorts the axes from the first result's longest stride to the shortest. Pairs that change places
// are neighbours along the last axis, which stays it.
static void sort_axes(Kern *kern, uint32_t rank)
{
    const Dim *stride = kern->pointers[0].stride;
    bool swaps = false;
    for (uint32_t i = 0; i < kern->pointer_count; i++)
        swaps |= kern->pointers[i].swap;
    for (uint32_t end = 1; end + swaps < rank; end++)
        for (uint32_t axis = end; axis > 0 && is_longer(stride[axis], stride[axis - 1]); axis--)
            swap_axes(kern, axis, axis - 1);
}

static void join_axes(Kern *kern)
{
    const Type *space = kern->group->space;
    uint32_t rank = 0;
    for (uint32_t axis = 0; axis < space->rank; axis++) {
        kern->size[axis] = space->dim[axis];
        if (!dim_is_one(space->dim[axis]))
            move_axis(kern, rank++, axis);
    }
    sort_axes(kern, rank);
    for (uint32_t axis = 0; axis < rank; axis++) {
        if (kern->rank > 0 && joins(kern, kern->rank - 1, axis)) {
            Dim size = dim_product(kern->size[kern->rank - 1], kern->size[axis]);
            move_axis(kern, kern->rank - 1, axis);
            kern->size[kern->rank - 1] = size;
        } else {
            move_axis(kern, kern->rank++, axis);
        }
    }
    if (kern->rank == 0) {
        kern->rank = 1;
        kern->size[0] = dim_fixed(1);
        for (uint32_t i = 0; i < kern->pointer_count; i++)
            kern->pointers[i].stride[0] = dim_fixed(i < kern->group->result_count);
    }
    for (uint32_t i = 0; i < kern->pointer_count; i++) {
        Dim stride = kern->pointers[i].stride[kern->rank - 1];
        kern->pointers[i].inner = stride.n == 0                          ? INNER_FIXED
                                  : dim_equal(stride, dim_fixed(1)) ? INNER_DENSE
                                                                         : INNER_STRIDED;
    }
}

// ---- text ----

size_t pointer_size(const Kern *kern, const Pointer *pointer)
{
    return pointer->place.store != PV_STORE_REAL
               ? 2
               : element_size(kern->lower->cg->module, pointer->dtype);
}

const char *storage_type(DType dtype)
{
    return dtype == DT_BOOL ? "uint8_t" : c_type(dtype);
}

static void write_pointers(const Kern *kern, FILE *out)
{
    for (uint32_t i = 0; i < kern->pointer_count; i++) {
        const Pointer *pointer = &kern->pointers[i];
        fprintf(out, "    %s%s *p%u = (%s%s *)args[%u];\n", pointer->result ? "" : "const ",
                storage_type(pointer->dtype), i, pointer->result ? "" : "const ",
                storage_type(pointer->dtype), i);
    }
}

// Names of the constants; literals where they are small.
static bool is_plain(double value)
{
    return value == 0 || value == 1 || value == -1 || value == 2 || value == 0.5 || value == -2;
}

static void write_load(const Kern *kern, FILE *out, const char *indent, uint32_t i,
                       const char *neighbour)
{
    const Pointer *pointer = &kern->pointers[i];
    const char *index = pointer->swap ? neighbour : "i";
    fprintf(out, "%sconst %s x%u = r%u[", indent, c_type(pointer->dtype), i, i);
    if (pointer->inner == INNER_FIXED)
        fprintf(out, "0]");
    else if (pointer->inner == INNER_DENSE)
        fprintf(out, "%s]", index);
    else
        fprintf(out, "%s * s%u]", index, i);
    fprintf(out, "%s;\n", pointer->dtype == DT_BOOL ? " != 0" : "");
}

// Number of a constant that is an argument.
static uint32_t real_argument(Kern *kern, double value)
{
    uint32_t i = 0;
    while (i < kern->real_count && kern->reals[i] != value)
        i++;
    if (i == MAX_POINTERS)
        bug("an elementwise kernel with more than %d constants", MAX_POINTERS);
    if (i == kern->real_count)
        kern->reals[kern->real_count++] = value;
    return i;
}

static Operand find_operand(Kern *kern, const Node *reader, Val val)
{
    const Node *node = val_get(kern->lower->graph, val);
    if (node->op == OP_CONST && !dtype_is_float(node->type[0]->dtype))
        return (Operand){FROM_INTEGER, 0, node->attr->real};
    if (node->op == OP_CONST && is_plain(node->attr->real))
        return (Operand){FROM_REAL, 0, node->attr->real};
    if (node->op == OP_CONST)
        return (Operand){FROM_ARGUMENT, real_argument(kern, node->attr->real), 0};
    bool swap = reader->op == OP_SWAP_PAIRS;
    if (swap || !group_inlines(kern->lower->work, kern->number, val))
        return (Operand){FROM_POINTER,
                         (uint32_t)(find_pointer(kern, val, swap) - kern->pointers), 0};
    return (Operand){FROM_MEMBER, member_of(kern, val), 0};
}

// Of all members; collects the constants.
static void find_operands(Kern *kern)
{
    const Group *group = kern->group;
    if (kern->operand_members < group->member_count) {
        kern->operand_members = 2 * group->member_count;
        kern->operands = arena_alloc(kern->lower->work->arena, kern->operand_members *
                                                                   MAX_OPERANDS *
                                                                   sizeof *kern->operands);
    }
    for (uint32_t i = 0; i < group->member_count; i++) {
        const Node *node = graph_node(kern->lower->graph, group->members[i]);
        for (uint32_t k = 0; k < node->nin && k < MAX_OPERANDS; k++)
            kern->operands[i * MAX_OPERANDS + k] = find_operand(kern, node, node->in[k]);
    }
}

static void name_operand(const Operand *operand, char *name, size_t size)
{
    static const char *const letters[] = {
        [FROM_POINTER] = "x", [FROM_MEMBER] = "t", [FROM_ARGUMENT] = "c"};
    if (operand->from == FROM_INTEGER)
        snprintf(name, size, "INT64_C(%lld)", (long long)operand->value);
    else if (operand->from == FROM_REAL)
        snprintf(name, size, "(PvReal)%g", operand->value);
    else
        snprintf(name, size, "%s%u", letters[operand->from], operand->index);
}

void write_statements(const Kern *kern, FILE *out, const char *indent)
{
    const Graph *graph = kern->lower->graph;
    const Group *group = kern->group;
    for (uint32_t i = 0; i < group->member_count; i++) {
        const Node *node = graph_node(graph, group->members[i]);
        char names[MAX_OPERANDS][40];
        const char *args[MAX_OPERANDS] = {names[0], names[1], names[2]};
        for (uint32_t k = 0; k < node->nin && k < MAX_OPERANDS; k++)
            name_operand(&kern->operands[i * MAX_OPERANDS + k], names[k], sizeof names[k]);
        fprintf(out, "%sconst %s t%u = ", indent, c_type(node->type[0]->dtype), i);
        if (node->op == OP_SWAP_PAIRS)
            fprintf(out, "%s", args[0]);
        else
            write_op(out, graph, node, args);
        fprintf(out, ";\n");
    }
}

uint32_t member_of(const Kern *kern, Val result)
{
    uint32_t i = 0;
    while (kern->group->members[i] != val_node(result))
        i++;
    return i;
}

// The statements of element i; `neighbour` is the index of the one it changes places with.
static void write_body(const Kern *kern, FILE *out, const char *neighbour)
{
    const Group *group = kern->group;
    const char *indent = "            ";
    for (uint32_t i = group->result_count; i < kern->pointer_count; i++)
        if (kern->pointers[i].inner != INNER_FIXED)
            write_load(kern, out, indent, i, neighbour);
    write_statements(kern, out, indent);
    for (uint32_t i = 0; i < group->result_count; i++)
        fprintf(out, "%sr%u[%s] = t%u;\n", indent, i,
                kern->pointers[i].inner == INNER_STRIDED
                    ? arena_printf(kern->lower->work->arena, "i * s%u", i)
                    : "i",
                member_of(kern, group->results[i]));
}

// Rows: where each pointer begins for the outer axes of this task.
static void write_rows(const Kern *kern, FILE *out)
{
    uint32_t outer = kern->rank - 1;
    for (uint32_t axis = outer; axis-- > 0;) {
        if (axis > 0)
            fprintf(out, "        const int64_t i%u = row %% n%u;\n        row /= n%u;\n", axis,
                    axis, axis);
        else
            fprintf(out, "        const int64_t i0 = row;\n");
    }
    for (uint32_t i = 0; i < kern->pointer_count; i++) {
        const Pointer *pointer = &kern->pointers[i];
        fprintf(out, "        %s%s *r%u = p%u", pointer->result ? "" : "const ",
                storage_type(pointer->dtype), i, i);
        for (uint32_t axis = 0; axis < outer; axis++)
            if (pointer->stride[axis].n != 0)
                fprintf(out, " + i%u * a%u_%u", axis, i, axis);
        fprintf(out, ";\n");
        if (pointer->inner == INNER_FIXED && !pointer->result)
            write_load(kern, out, "        ", i, "0");
    }
}

static bool has_swap(const Kern *kern)
{
    for (uint32_t i = 0; i < kern->pointer_count; i++)
        if (kern->pointers[i].swap)
            return true;
    return false;
}

// The inner loop. With a swap it goes by pairs, so that vectors are shuffled and not gathered; the
// axis is even, and so is a block.
static void write_loop(const Kern *kern, FILE *out)
{
    if (!has_swap(kern)) {
        fprintf(out, "#pragma omp simd\n        for (int64_t i = begin; i < end; i++) {\n");
        write_body(kern, out, "i");
        fprintf(out, "        }\n");
        return;
    }
    fprintf(out, "#pragma omp simd\n        for (int64_t j = begin; j < end; j += 2) {\n"
                 "          {\n            const int64_t i = j;\n");
    write_body(kern, out, "(i + 1)");
    fprintf(out, "          }\n          {\n            const int64_t i = j + 1;\n");
    write_body(kern, out, "(i - 1)");
    fprintf(out, "          }\n        }\n");
}

static void write_kernel(const Kern *kern, FILE *out)
{
    uint32_t arg = kern->pointer_count, inner = kern->rank - 1;
    fprintf(out, "(const PvRun *run, const int64_t *args)\n{\n"
                 "  for (uint32_t left = run->segments; left > 0; left--) {\n");
    write_pointers(kern, out);
    for (uint32_t i = 0; i < kern->real_count; i++)
        fprintf(out, "    const PvReal c%u = pv_real(args[%u]);\n", i, arg++);
    for (uint32_t axis = 0; axis < kern->rank; axis++)
        fprintf(out, "    const int64_t n%u = args[%u];\n", axis, arg++);
    for (uint32_t i = 0; i < kern->pointer_count; i++) {
        for (uint32_t axis = 0; axis < inner; axis++)
            if (kern->pointers[i].stride[axis].n != 0)
                fprintf(out, "    const int64_t a%u_%u = args[%u];\n", i, axis, arg++);
        if (kern->pointers[i].inner == INNER_STRIDED)
            fprintf(out, "    const int64_t s%u = args[%u];\n", i, arg++);
    }
    fprintf(out, "    const int64_t blocks = (n%u + %d) / %d;\n", inner, BLOCK - 1, BLOCK);
    fprintf(out, "    const int64_t rows = 1");
    for (uint32_t axis = 0; axis < inner; axis++)
        fprintf(out, " * n%u", axis);
    fprintf(out, ";\n#pragma omp parallel for schedule(static) num_threads(run->threads) "
                 "if (rows * n%u > %d)\n", inner, PARALLEL);
    fprintf(out, "    for (int64_t task = 0; task < rows * blocks; task++) {\n");
    if (inner > 0)
        fprintf(out, "        int64_t row = task / blocks;\n");
    fprintf(out, "        const int64_t begin = task %% blocks * %d;\n", BLOCK);
    fprintf(out, "        const int64_t end = begin + %d < n%u ? begin + %d : n%u;\n", BLOCK, inner,
            BLOCK, inner);
    write_rows(kern, out);
    write_loop(kern, out);
    fprintf(out, "    }\n    args += %u;\n  }\n}\n", arg);
}

// "add_silu": the last operations, in order.
static const char *kernel_title(const Kern *kern)
{
    const Group *group = kern->group;
    uint32_t first = group->member_count > 4 ? group->member_count - 4 : 0;
    const char *title = "";
    for (uint32_t i = first; i < group->member_count; i++)
        title = arena_printf(kern->lower->work->arena, "%s%s%s", title, i > first ? "_" : "",
                             op_info[graph_node(kern->lower->graph, group->members[i])->op].name);
    return title;
}

// ---- in place ----

static bool same_walk(const Kern *kern, const Pointer *x, const Pointer *y)
{
    if (x->place.a != y->place.a || x->place.c != y->place.c || x->swap || y->swap)
        return false;
    for (uint32_t axis = 0; axis < kern->rank; axis++)
        if (!dim_equal(x->stride[axis], y->stride[axis]))
            return false;
    return true;
}

// A result may overwrite an operand whose buffer every pointer walks exactly as the result will.
static void find_inplace(const Kern *kern, PlanLaunch *launch)
{
    for (uint32_t i = 0; i < kern->group->result_count; i++) {
        const Pointer *result = &kern->pointers[i];
        if (result->place.space != PV_ARENA && result->place.space != PV_GRAD)
            continue;
        for (uint32_t k = kern->group->result_count; k < kern->pointer_count; k++) {
            const Pointer *operand = &kern->pointers[k];
            if (operand->place.space != PV_ARENA || operand->place.a || operand->place.c ||
                pointer_size(kern, operand) != pointer_size(kern, result))
                continue;
            const Buffer *buffer = &kern->lower->work->buffers[operand->place.buffer - 1];
            if (result->place.space == PV_GRAD &&      // the buffer will lie there
                (buffer->batch || buffer->size != count_of(kern->group->space).n *
                                      (int64_t)pointer_size(kern, result)))
                continue;
            Pointer there = *result;
            there.place = operand->place;
            bool fits = true;
            for (uint32_t j = kern->group->result_count; j < kern->pointer_count; j++)
                if (kern->pointers[j].place.space == PV_ARENA &&
                    kern->pointers[j].place.buffer == operand->place.buffer)
                    fits &= same_walk(kern, &there, &kern->pointers[j]);
            if (fits) {
                launch->inplace_out = result->place;
                launch->inplace_in = operand->place.buffer;
                return;
            }
        }
    }
}

static uint32_t count_args(const Kern *kern)
{
    uint32_t count = kern->pointer_count + kern->real_count + kern->rank;
    for (uint32_t i = 0; i < kern->pointer_count; i++) {
        for (uint32_t axis = 0; axis + 1 < kern->rank; axis++)
            count += kern->pointers[i].stride[axis].n != 0;
        count += kern->pointers[i].inner == INNER_STRIDED;
    }
    return count;
}

static uint32_t add_cuda(const Kern *kern, const char *title, uint32_t args)
{
    CudaChoice choice;
    char *text = cuda_elementwise_text(kern, args, &choice);
    choice.name = title;
    uint32_t number = cuda_kernel_add(kern->lower->cg, &choice, text, args);
    free(text);
    return number;
}

// ---- kernels by what they are made from ----

// Everything that the texts are made from, as numbers: groups of equal keys share a kernel, and
// only the first is written out.
static void make_key(const Kern *kern, Bytes *key)
{
    Arena *arena = kern->lower->cg->arena;
    const Group *group = kern->group;
    const uint32_t head[] = {kern->rank, kern->pointer_count, group->result_count,
                             group->member_count, kern->real_count, cuda_inner_fours(kern)};
    key->count = 0;
    bytes_add(arena, key, head, sizeof head);
    for (uint32_t i = 0; i < kern->pointer_count; i++) {
        const Pointer *pointer = &kern->pointers[i];
        uint32_t outer = 0;
        for (uint32_t axis = 0; axis + 1 < kern->rank; axis++)
            outer |= (uint32_t)(pointer->stride[axis].n != 0) << axis;
        const uint8_t words[] = {(uint8_t)pointer->dtype, pointer->swap, pointer->result,
                                 (uint8_t)pointer->inner, pointer->place.store, (uint8_t)outer,
                                 cuda_by_fours(kern, pointer), 0};
        bytes_add(arena, key, words, sizeof words);
    }
    for (uint32_t i = 0; i < group->member_count; i++) {
        const Node *node = graph_node(kern->lower->graph, group->members[i]);
        const uint32_t words[] = {(uint32_t)node->op, (uint32_t)node->type[0]->dtype, node->nin,
                                  (uint32_t)val_type(kern->lower->graph, node->in[0])->dtype};
        bytes_add(arena, key, words, sizeof words);
        for (uint32_t k = 0; k < node->nin && k < MAX_OPERANDS; k++)
            bytes_add(arena, key, &kern->operands[i * MAX_OPERANDS + k], sizeof(Operand));
    }
    for (uint32_t i = 0; i < group->result_count; i++) {
        uint32_t member = member_of(kern, group->results[i]);
        bytes_add(arena, key, &member, sizeof member);
    }
}

static uint32_t write_texts(const Kern *kern, uint32_t args)
{
    Lower *lower = kern->lower;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        bug("out of memory");
    write_kernel(kern, out);
    if (fclose(out) != 0)
        bug("out of memory");
    const char *title = kernel_title(kern);
    uint32_t cuda = wants_cuda(lower->cg) ? add_cuda(kern, title, args) : 0;
    uint32_t kernel = kernel_emitted(lower->cg, title, text, cuda);
    free(text);
    return kernel;
}

static uint32_t find_kernel(Kern *kern, uint32_t args)
{
    Codegen *cg = kern->lower->cg;
    make_key(kern, &cg->key);
    bool found;
    uint32_t *kernel = memo_find(cg->arena, &cg->elementwise, &cg->key, sizeof *kernel, &found);
    if (!found)
        *kernel = write_texts(kern, args);
    return *kernel;
}

void lower_elementwise(Lower *lower, const Group *group, uint32_t number)
{
    if (!lower->kern)          // one for all groups of a plan: it is large
        lower->kern = arena_alloc(lower->work->arena, sizeof *lower->kern);
    Kern *kern = lower->kern;
    kern->lower = lower;
    kern->group = group;
    kern->number = number;
    kern->pointer_count = kern->real_count = kern->rank = 0;
    add_pointers(kern);
    join_axes(kern);
    find_operands(kern);
    uint32_t arg = 0, count = count_args(kern), inner = kern->rank - 1;
    uint32_t kernel = find_kernel(kern, count);
    launch_begin_kernel(lower, kernel, count);
    for (uint32_t i = 0; i < kern->pointer_count; i++)
        set_arg(lower, arg++, kern->pointers[i].place);
    for (uint32_t i = 0; i < kern->real_count; i++)
        set_real(lower, arg++, kern->reals[i]);
    for (uint32_t axis = 0; axis < kern->rank; axis++)
        set_dim(lower, arg++, kern->size[axis]);
    for (uint32_t i = 0; i < kern->pointer_count; i++) {
        for (uint32_t axis = 0; axis < inner; axis++)
            if (kern->pointers[i].stride[axis].n != 0)
                set_dim(lower, arg++, kern->pointers[i].stride[axis]);
        if (kern->pointers[i].inner == INNER_STRIDED)
            set_dim(lower, arg++, kern->pointers[i].stride[inner]);
    }
    find_inplace(kern, &lower->work->launches[lower->work->launch_count - 1]);
}
