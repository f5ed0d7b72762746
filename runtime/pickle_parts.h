// What the machine of pickle.c and the globals and tensors of pickle_tensor.c share.
#ifndef PVDM_PICKLE_PARTS_H
#define PVDM_PICKLE_PARTS_H

#include "runtime/torch_file.h"

enum {
    MAX_PICKLE = 16 << 20,
    MAX_STACK = 1 << 20,
    MAX_DEPTH = 64,      // of nested containers
    MAX_STEPS = 1 << 19, // of the walk that flattens
    MAX_ITEMS = 1 << 20, // tensors in a file
    MAX_NAME = 1000,
};

typedef enum {
    V_NONE,
    V_BOOL,
    V_INT,
    V_REAL,
    V_TEXT,
    V_TUPLE,
    V_LIST,
    V_DICT,
    V_GLOBAL,
    V_STORAGE,
    V_TENSOR,
    V_OPAQUE, // allowed, but of no interest
} Kind;

typedef enum {
    G_DICT,
    G_SIZE,
    G_TENSOR,
    G_PARAMETER,
    G_STORAGE,
    G_OPAQUE,
} Action;

typedef struct Value Value;
struct Value {
    uint8_t kind;
    uint8_t dtype;  // G_STORAGE, V_STORAGE
    uint8_t action; // V_GLOBAL
    union {
        int64_t integer;
        double real;
        struct {
            const char *text; // not ended by 0
            size_t length;
        };
        struct {
            Value **items; // of dictionaries: key, value, key, value...
            size_t count, capacity;
        };
        PvTensor *tensor; // V_STORAGE, V_TENSOR
    };
};

// Values come from blocks; containers, tensors and blocks are freed at the end.
enum { BLOCK_VALUES = 1024 };
typedef struct Block Block;
struct Block {
    Block *next;
    size_t used;
    Value values[BLOCK_VALUES];
};

typedef struct {
    const char *name; // of the file
    const uint8_t *data;
    size_t size, at;
    Block *blocks;
    Value **stack;
    size_t depth, stack_capacity;
    size_t *marks; // depths of the stack where marks are
    size_t mark_count, mark_capacity;
    Value **memo;
    size_t memo_count, memo_capacity;
    PvStorageFn *storage;
    void *context;
    int64_t copy_limit;  // bytes that dense copies of views may still need
    size_t copied_items; // of dictionaries made from other containers
    PvError *error;
} Machine;

/* pickle.c */
Value *pickle_new(Machine *machine, Kind kind);
void pickle_add(Value *container, Value *item);
bool pickle_fail(Machine *machine, const char *what); // always false
bool pickle_push(Machine *machine, Value *value);
// The top value, taken off; NULL with an error when there is none above the last mark.
Value *pickle_pop(Machine *machine);

/* pickle_tensor.c */
// Pushes a global of the list of those that are allowed; any other is an error that names it.
bool pickle_global(Machine *machine, const char *module, size_t module_length, const char *name,
                   size_t name_length);
bool pickle_call(Machine *machine);    // REDUCE, NEWOBJ
bool pickle_storage(Machine *machine); // BINPERSID

#endif
