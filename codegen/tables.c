// What all plans of a model share while code is made: kernels by text, data by content, and where
// parameters, options and outputs are found. Equal kernels and equal data are there once, so
// identical plans cost nothing but their names.
#include <stdlib.h>
#include <string.h>

#include "codegen/codegen.h"

enum { DATA_ALIGN = 64 };

static void lay_out_params(Codegen *cg)
{
    const Module *module = cg->module;
    cg->param_offset = arena_alloc(cg->arena, (module->param_count + 1) * sizeof(int64_t));
    int64_t offset = 0;
    for (uint32_t i = 0; i < module->param_count; i++) {
        Dim count = {0, 0};
        type_count(&module->params[i].type, &count);
        cg->param_offset[i] = offset;
        offset += count.n * (int64_t)element_size(module, module->params[i].type.dtype);
        offset = (offset + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
    }
    cg->param_bytes = offset;
    cg->option_slot = arena_alloc(cg->arena, (module->option_count + 1) * sizeof(uint32_t));
    for (uint32_t i = 0; i < module->option_count; i++) {
        cg->option_slot[i] = cg->option_slots;
        cg->option_slots += module->options[i].count ? module->options[i].count : 1;
    }
}

static bool same_output(const Output *x, const Output *y)
{
    return x->kind == y->kind && x->param == y->param && strcmp(x->name, y->name) == 0;
}

static bool is_io(const Output *output)
{
    return output->kind != OUT_GRAD && output->kind != OUT_STATE;
}

// The tensors of an entry, of all its variants: results, input gradients, reports, settings.
static void list_outputs(Codegen *cg, uint32_t index)
{
    static const OutKind kinds[] = {OUT_NAMED, OUT_GRAD_INPUT, OUT_REPORT, OUT_SETTING};
    const Entry *entry = &cg->module->entries[index];
    struct EntryOutputs *all = &cg->outputs[index];
    uint32_t most = 0;
    for (uint32_t v = 0; v < entry->variant_count; v++)
        most += entry->variants[v].output_count;
    all->at = arena_alloc(cg->arena, (most + 1) * sizeof *all->at);
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
        for (uint32_t v = 0; v < entry->variant_count; v++)
            for (uint32_t i = 0; i < entry->variants[v].output_count; i++) {
                const Output *output = &entry->variants[v].outputs[i];
                if (output->kind == kinds[kind] && output_index(cg, index, output) == UINT32_MAX)
                    all->at[all->count++] = *output;
            }
}

Codegen *codegen_new(Module *module, Sources *sources, const char *march)
{
    Codegen *cg = arena_alloc(module->arena, sizeof *cg);
    cg->module = module;
    cg->sources = sources;
    cg->arena = module->arena;
    cg->march = march;
    cg->targets.cpu = true;
    lay_out_params(cg);
    cg->outputs = arena_alloc(cg->arena, (module->entry_count + 1) * sizeof *cg->outputs);
    for (uint32_t i = 0; i < module->entry_count; i++)
        list_outputs(cg, i);
    return cg;
}

uint32_t output_index(const Codegen *cg, uint32_t entry, const Output *output)
{
    const struct EntryOutputs *all = &cg->outputs[entry];
    for (uint32_t i = 0; is_io(output) && i < all->count; i++)
        if (same_output(&all->at[i], output))
            return i;
    return UINT32_MAX;
}

uint32_t stream_index(const Codegen *cg, const char *name)
{
    for (uint32_t i = 0; i < cg->module->stream_count; i++)
        if (strcmp(cg->module->streams[i], name) == 0)
            return i;
    bug("no stream '%s'", name);
}

// ---- hash tables: open addressing over item + 1 ----

static uint32_t *grow_table(Arena *arena, uint32_t size)
{
    return arena_alloc(arena, size * sizeof(uint32_t));
}

static uint64_t kernel_hash(const Kernel *kernel)
{
    const char *text = kernel->text ? kernel->text : kernel->symbol;
    return hash_bytes(text, strlen(text)) +
           (kernel->cuda + 7 * kernel->cuda_90a) * UINT64_C(0x9e3779b97f4a7c15);
}

static bool same_kernel(const Kernel *x, const Kernel *y)
{
    if (x->cuda != y->cuda || x->cuda_90a != y->cuda_90a || !x->text != !y->text)
        return false;
    return strcmp(x->text ? x->text : x->symbol, y->text ? y->text : y->symbol) == 0;
}

static void insert_kernel(Codegen *cg, uint32_t number)
{
    uint32_t mask = cg->kernel_table_size - 1;
    uint32_t at = (uint32_t)kernel_hash(&cg->kernels[number]) & mask;
    while (cg->kernel_table[at])
        at = (at + 1) & mask;
    cg->kernel_table[at] = number + 1;
}

static uint32_t add_kernel(Codegen *cg, Kernel kernel)
{
    if (2 * (cg->kernel_count + 1) > cg->kernel_table_size) {
        cg->kernel_table_size = cg->kernel_table_size ? 2 * cg->kernel_table_size : 256;
        cg->kernel_table = grow_table(cg->arena, cg->kernel_table_size);
        for (uint32_t i = 0; i < cg->kernel_count; i++)
            insert_kernel(cg, i);
    }
    uint32_t mask = cg->kernel_table_size - 1, at = (uint32_t)kernel_hash(&kernel) & mask;
    for (; cg->kernel_table[at]; at = (at + 1) & mask) {
        const Kernel *other = &cg->kernels[cg->kernel_table[at] - 1];
        if (same_kernel(other, &kernel))
            return cg->kernel_table[at] - 1;
    }
    uint32_t number = cg->kernel_count;
    cg->kernels = grow_array(cg->kernels, &cg->kernel_capacity, number, sizeof *cg->kernels);
    if (kernel.text) {
        kernel.text = arena_printf(cg->arena, "%s", kernel.text);
        kernel.name = arena_printf(cg->arena, "%s", kernel.name);
        kernel.symbol =
            arena_printf(cg->arena, "%s_%012llx", kernel.name,
                         (unsigned long long)hash_bytes(kernel.text, strlen(kernel.text)) >> 16);
    }
    cg->kernels[cg->kernel_count++] = kernel;
    cg->kernel_table[at] = number + 1;
    return number;
}

uint32_t kernel_library(Codegen *cg, const char *symbol)
{
    return add_kernel(cg, (Kernel){.name = symbol + strlen("pv_"), .symbol = symbol});
}

uint32_t kernel_emitted(Codegen *cg, const char *name, const char *text, uint32_t cuda)
{
    return add_kernel(cg, (Kernel){.name = name, .text = text, .cuda = cuda});
}

uint32_t kernel_with_cuda(Codegen *cg, uint32_t kernel, uint32_t cuda, uint32_t cuda_90a)
{
    Kernel changed = cg->kernels[kernel];
    changed.cuda = cuda;
    changed.cuda_90a = cuda_90a;
    return add_kernel(cg, changed);
}

const char *kernel_name(const Codegen *cg, uint32_t kernel)
{
    return cg->kernels[kernel].name;
}

// ---- data ----

static void insert_data(Codegen *cg, uint32_t item)
{
    uint32_t mask = cg->data_table_size - 1, at = (uint32_t)cg->data_items[item].hash & mask;
    while (cg->data_table[at])
        at = (at + 1) & mask;
    cg->data_table[at] = item + 1;
}

size_t data_add(Codegen *cg, const void *bytes, size_t size)
{
    if (2 * (cg->data_count + 1) > cg->data_table_size) {
        cg->data_table_size = cg->data_table_size ? 2 * cg->data_table_size : 256;
        cg->data_table = grow_table(cg->arena, cg->data_table_size);
        for (uint32_t i = 0; i < cg->data_count; i++)
            insert_data(cg, i);
    }
    uint64_t hash = size ? hash_bytes(bytes, size) : 0;
    uint32_t mask = cg->data_table_size - 1;
    for (uint32_t at = (uint32_t)hash & mask; cg->data_table[at]; at = (at + 1) & mask) {
        const struct DataItem *item = &cg->data_items[cg->data_table[at] - 1];
        if (item->hash == hash && item->size == size &&
            (size == 0 || memcmp(cg->data + item->offset, bytes, size) == 0))
            return item->offset;
    }
    size_t offset = (cg->data_size + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
    if (offset + size + DATA_ALIGN > cg->data_capacity) {
        cg->data_capacity = 2 * (offset + size + 4096);
        char *data = realloc(cg->data, cg->data_capacity);
        if (!data)
            bug("out of memory");
        cg->data = data;
    }
    memset(cg->data + cg->data_size, 0, offset - cg->data_size);
    if (size)
        memcpy(cg->data + offset, bytes, size);
    cg->data_size = offset + size;
    cg->data_items =
        grow_array(cg->data_items, &cg->data_item_capacity, cg->data_count, sizeof *cg->data_items);
    cg->data_items[cg->data_count] = (struct DataItem){hash, offset, size};
    insert_data(cg, cg->data_count++);
    return offset;
}

size_t data_table(Codegen *cg, const Node *table)
{
    size_t size, width = element_size(cg->module, table->type[0]->dtype);
    const void *blob = graph_blob(cg->module->graph, (uint32_t)table->attr->n[0], &size);
    size_t stored = dtype_size(table->type[0]->dtype);
    if (width == stored)
        return data_add(cg, blob, size);
    size_t count = size / stored;      // f32 stored, f64 wanted, or the reverse
    char *copy = malloc(count * width + 1);
    if (!copy)
        bug("out of memory");
    for (size_t i = 0; i < count; i++) {
        if (width == 8)
            ((double *)(void *)copy)[i] = (double)((const float *)blob)[i];
        else
            ((float *)(void *)copy)[i] = (float)((const double *)blob)[i];
    }
    size_t offset = data_add(cg, copy, count * width);
    free(copy);
    return offset;
}
