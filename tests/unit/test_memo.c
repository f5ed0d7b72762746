// link: pvdm_codegen
// The table of what was made before: a value a key, whatever the keys' lengths and number.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "codegen/codegen.h"

enum { KEYS = 5000 };

// Key i: its number in one to eight bytes, behind i % 50 zeros.
static void make_key(Arena *arena, Bytes *key, uint64_t i)
{
    static const unsigned char zeros[50];
    key->count = 0;
    bytes_add(arena, key, zeros, i % 50);
    bytes_add(arena, key, &i, 1 + (i > 255) + 6 * (i > 65535));
}

static void test_finds_what_it_was_given(void **unused)
{
    (void)unused;
    Arena *arena = arena_new();
    Memo memo = {0};
    Bytes key = {0};
    bool found;
    for (uint64_t i = 0; i < KEYS; i++) {
        make_key(arena, &key, i);
        uint64_t *value = memo_find(arena, &memo, &key, sizeof *value, &found);
        assert_false(found);
        assert_int_equal(*value, 0);
        *value = i + 1;
    }
    assert_int_equal(memo.count, KEYS);
    for (uint64_t i = 0; i < KEYS; i++) {
        make_key(arena, &key, i);
        const uint64_t *value = memo_find(arena, &memo, &key, sizeof *value, &found);
        assert_true(found);
        assert_int_equal(*value, i + 1);
    }
    arena_free(arena);
}

static void test_values_stay_where_they_are(void **unused)
{
    (void)unused;
    Arena *arena = arena_new();
    Memo memo = {0};
    Bytes key = {0};
    bool found;
    make_key(arena, &key, 7);
    const void *first = memo_find(arena, &memo, &key, 8, &found);
    for (uint64_t i = 100; i < 2000; i++) {
        make_key(arena, &key, i);
        memo_find(arena, &memo, &key, 8, &found);
    }
    make_key(arena, &key, 7);
    assert_ptr_equal(memo_find(arena, &memo, &key, 8, &found), first);
    arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finds_what_it_was_given),
        cmocka_unit_test(test_values_stay_where_they_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
