// Taps: the values of unfused plans that can be looked at, as records among the constants.
//
// A model has tens of thousands, in many plans, under a few thousand names and a few types. So a
// record holds no addresses: name and type are numbers, given in the order in which they are first
// seen, and the C compiler sees none of it but the list of types.
#include <stdlib.h>
#include <string.h>

#include "codegen/codegen.h"

// Interned pointers and their numbers. An address decides only where a search begins.
typedef struct {
    const void **keys;
    uint32_t *numbers;
    uint32_t count, size;      // size: of the table, a power of two
} Numbers;

struct Taps {
    Codegen *cg;
    Numbers names, types;      // a name's number is where it begins in `text`
    const Type **type_list;
    char *text;                // names, each with a 0 behind it
    size_t type_capacity, text_capacity, text_size;
};

static uint32_t slot_of(const Numbers *numbers, const void *key)
{
    uint32_t mask = numbers->size - 1, at = (uint32_t)hash_bytes(&key, sizeof key) & mask;
    while (numbers->keys[at] && numbers->keys[at] != key)
        at = (at + 1) & mask;
    return at;
}

// Room for `most` keys.
static Numbers numbers_new(Arena *arena, uint32_t most)
{
    Numbers numbers = {.size = 64};
    while (numbers.size < 2 * most)
        numbers.size *= 2;
    numbers.keys = arena_alloc(arena, numbers.size * sizeof *numbers.keys);
    numbers.numbers = arena_alloc(arena, numbers.size * sizeof *numbers.numbers);
    return numbers;
}

Taps *taps_new(Codegen *cg)
{
    Taps *taps = arena_alloc(cg->arena, sizeof *taps);
    uint32_t most = 0;
    for (uint32_t i = 0; i < cg->plan_count; i++)
        most += cg->plans[i]->tap_count;
    *taps = (Taps){.cg = cg, .names = numbers_new(cg->arena, most),
                   .types = numbers_new(cg->arena, most)};
    return taps;
}

static uint32_t name_number(Taps *taps, const char *name)
{
    name = intern(name);
    uint32_t slot = slot_of(&taps->names, name);
    if (taps->names.keys[slot])
        return taps->names.numbers[slot];
    size_t length = strlen(name) + 1, at = taps->text_size;
    while (taps->text_size + length > taps->text_capacity)
        taps->text = grow_array(taps->text, &taps->text_capacity, taps->text_capacity, 1);
    memcpy(taps->text + at, name, length);
    taps->text_size += length;
    taps->names.keys[slot] = name;
    return taps->names.numbers[slot] = (uint32_t)at;
}

static uint32_t type_number(Taps *taps, const Type *type)
{
    uint32_t slot = slot_of(&taps->types, type);
    if (taps->types.keys[slot])
        return taps->types.numbers[slot];
    uint32_t number = taps->types.count++;
    taps->type_list =
        grow_array(taps->type_list, &taps->type_capacity, number, sizeof *taps->type_list);
    taps->type_list[number] = type;
    taps->types.keys[slot] = type;
    return taps->types.numbers[slot] = number;
}

size_t taps_add(Taps *taps, const Work *work)
{
    PvTap *records = calloc(work->tap_count + 1u, sizeof *records);    // padding is 0
    if (!records)
        bug("out of memory");
    for (uint32_t i = 0; i < work->tap_count; i++) {
        const PlanTap *tap = &work->tap_list[i];
        PvArg at = resolve_arg(work, &tap->at);
        records[i].at.a = at.a;
        records[i].at.c = at.c;
        records[i].at.space = at.space;
        records[i].launch = tap->launch;
        records[i].name = name_number(taps, tap->name);
        records[i].type = type_number(taps, tap->type);
    }
    size_t offset = data_add(taps->cg, records, work->tap_count * sizeof *records);
    free(records);
    return offset;
}

size_t taps_write(Taps *taps, FILE *out)
{
    fprintf(out, "static const PvType tap_types[] = {\n");
    for (uint32_t i = 0; i < taps->types.count; i++) {
        fprintf(out, "    ");
        write_type(out, taps->cg->module, taps->type_list[i]);
        fprintf(out, ",\n");
    }
    fprintf(out, "%s};\n", taps->types.count ? "" : "    {0}\n");
    size_t offset = data_add(taps->cg, taps->text, taps->text_size);
    free(taps->text);
    free(taps->type_list);
    return offset;
}
