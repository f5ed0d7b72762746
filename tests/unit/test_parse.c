// link: pvdm_grammar
// The front end: what parses, what does not and with which words, and what hostile text does.
// Runs in the top folder. Cases with text of their own lie in tests/language (run_cases.py runs
// them through the compiler; here their syntax errors are checked without one).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/ast.h"

// What a parse leaves behind; freed by release().
typedef struct {
    Arena *arena;
    Ast *tree;
    uint32_t errors;
    char *messages;
} Parsed;

static Parsed parse_text(const char *path, const char *text, size_t size)
{
    Parsed parsed = {.arena = arena_new()};
    size_t length = 0;
    FILE *out = open_memstream(&parsed.messages, &length);
    Sources *sources = sources_new(parsed.arena);
    diag_init(sources, out);
    uint32_t file = text ? sources_add_text(sources, path, text) : sources_add_file(sources, path);
    assert_int_not_equal(file, 0);
    assert_true(!text || sources_get(sources, file)->size == size);
    parsed.tree = parse_model(sources, file);
    assert_non_null(parsed.tree);
    diag_flush();
    parsed.errors = diag_errors();
    fclose(out);
    diag_init(NULL, stderr);
    return parsed;
}

static Parsed parse(const char *text)
{
    return parse_text("test.model", text, strlen(text));
}

static void release(Parsed *parsed)
{
    arena_free(parsed->arena);
    free(parsed->messages);
}

static void assert_parses(const char *path, const char *text)
{
    Parsed parsed = parse_text(path, text, text ? strlen(text) : 0);
    if (parsed.errors)
        fail_msg("%s", parsed.messages);
    release(&parsed);
}

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    for (int byte; (byte = fgetc(file)) != EOF;)
        fputc(byte, out);
    fclose(file);
    fclose(out);
    return text;
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), wanted = strlen(end);
    return length >= wanted && strcmp(text + length - wanted, end) == 0;
}

// Calls `check` with the path of every .model file of a folder; returns how many there were.
static int for_each_model(const char *folder, void (*check)(const char *path))
{
    DIR *files = opendir(folder);
    assert_non_null(files);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(files));) {
        if (!ends_with(entry->d_name, ".model"))
            continue;
        char path[512];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        check(path);
        count++;
    }
    closedir(files);
    return count;
}

// ---- what parses ----

static void check_parses(const char *path)
{
    assert_parses(path, NULL);
}

static void test_models_parse(void **state)
{
    (void)state;
    assert_true(for_each_model("models", check_parses) >= 8);
    assert_int_equal(for_each_model("tests/language/tree", check_parses), 2);
}

// Blocks of the reference: `model` is a file, `body` stands inside of a function; a block `text`
// directly behind is what a wrong one gives, which is checked where it is a syntax error.
static void test_reference_parses(void **state)
{
    (void)state;
    char *page = read_file("grammar/README.md");
    assert_non_null(page);
    int blocks = 0;
    for (char *at = page; (at = strstr(at, "\n```"));) {
        char *kind = at + 4, *begin = strchr(kind, '\n') + 1, *end = strstr(begin, "```\n");
        assert_non_null(end);
        bool model = strncmp(kind, "model\n", 6) == 0, body = strncmp(kind, "body\n", 5) == 0;
        at = end + 2;
        if (!model && !body)
            continue;
        char *text = NULL;
        int size = asprintf(&text, "%s%.*s%s", body ? "def block() {\n" : "", (int)(end - begin),
                            begin, body ? "}\n" : "");
        assert_true(size > 0);
        char *next = strstr(end, "\n```");
        bool wrong = model && next && strncmp(next + 4, "text\n", 5) == 0;
        Parsed parsed = parse_text("example.model", text, (size_t)size);
        if (wrong && parsed.errors) {
            char *want = next + 9, *want_end = strstr(want, "```\n");
            *want_end = '\0';
            assert_string_equal(parsed.messages, want);
            *want_end = '`';
        } else if (parsed.errors) {
            fail_msg("%s", parsed.messages);
        }
        release(&parsed);
        free(text);
        blocks++;
    }
    free(page);
    assert_true(blocks >= 10);
}

// Every rule of the grammar stands in the reference, and every word of the language.
static void test_reference_is_complete(void **state)
{
    (void)state;
    char *grammar = read_file("grammar/model.y"), *page = read_file("grammar/README.md");
    assert_non_null(grammar);
    assert_non_null(page);
    int rules = 0, words = 0;
    char *save = NULL;
    for (char *line = strtok_r(grammar, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (*line == '#')
            continue;
        bool rule = strncmp(line, "%type <", 7) == 0 && strncmp(line, "%type <text", 11) != 0;
        char *rest = rule ? strchr(line, '>') + 1 : line, *inner = NULL;
        for (char *word = strtok_r(rest, " ", &inner); word; word = strtok_r(NULL, " ", &inner)) {
            char name[64];
            size_t length = strlen(word);
            bool keyword = !rule && word[0] == '"' && word[1] >= 'a' && word[length - 1] == '"';
            if (!rule && !keyword)
                continue;
            snprintf(name, sizeof name, keyword ? "%.*s" : "`%.*s`",
                     (int)(keyword ? length - 2 : length), keyword ? word + 1 : word);
            if (!strstr(page, name))
                fail_msg("the reference lacks %s", name);
            rules += rule;
            words += keyword;
        }
    }
    assert_true(rules > 40);
    assert_true(words > 30);
    free(grammar);
    free(page);
}

// ---- what does not ----

// The .expect file beside a case holds "---- stderr\n" and the messages.
static void check_wrong(const char *path)
{
    char expect_path[512];
    snprintf(expect_path, sizeof expect_path, "%.*s.expect", (int)(strlen(path) - 6), path);
    char *expect = read_file(expect_path);
    if (!expect)
        fail_msg("%s is missing", expect_path);
    char *want = strstr(expect, "---- stderr\n");
    if (!want || strncmp(expect, "status: 1\n", 10) != 0)
        fail_msg("%s: no message is expected", expect_path);
    Arena *arena = arena_new();
    Sources *sources = sources_new(arena);
    uint32_t file = sources_add_file(sources, path);
    // Messages name the file as the compiler is given it: without the folder.
    SourceFile *source = (SourceFile *)(uintptr_t)sources_get(sources, file);
    source->path = strrchr(path, '/') + 1;
    char *messages = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&messages, &size);
    diag_init(sources, out);
    parse_model(sources, file);
    diag_flush();
    fclose(out);
    diag_init(NULL, stderr);
    if (strcmp(messages, want + 12) != 0)
        fail_msg("%s:\n%s", path, messages);
    free(messages);
    free(expect);
    arena_free(arena);
}

static void test_wrong_files(void **state)
{
    (void)state;
    assert_true(for_each_model("tests/language/syntax", check_wrong) >= 40);
}

// What is right around a slip is read all the same.
static void test_goes_on(void **state)
{
    (void)state;
    Parsed parsed = parse("let a = 1\n"
                          "module M {\n"
                          "    x = (1 +\n"
                          "    y = 2\n"
                          "    def forward(z) = z\n"
                          "}\n"
                          "let b = 2\n");
    assert_int_equal(parsed.errors, 1);
    assert_int_equal(parsed.tree->list.count, 3);
    assert_string_equal(parsed.tree->list.at[2]->text, "b");
    Ast *block = parsed.tree->list.at[1]->b;
    assert_int_equal(block->list.at[block->list.count - 1]->kind, AST_DEF);
    release(&parsed);
}

static void test_spans(void **state)
{
    (void)state;
    Parsed parsed = parse("let total = (one + two) * f(x, k: 3)\n");
    Ast *let = parsed.tree->list.at[0], *product = let->a;
    assert_int_equal(let->span.begin, 0);
    assert_int_equal(let->span.end, 36);
    assert_int_equal(let->span2.begin, 4);
    assert_int_equal(let->span2.end, 9);
    assert_int_equal(product->span.begin, 12);
    assert_int_equal(product->a->span.begin, 13);
    assert_int_equal(product->a->span.end, 22);
    Ast *keyed = product->b->list.at[1];
    assert_int_equal(keyed->kind, AST_KEYED);
    assert_int_equal(keyed->span.begin, 31);
    assert_int_equal(keyed->span2.end, 32);
    release(&parsed);
}

// ---- hostile text ----

// `count` times `open`, then `middle`, then `count` times `close`.
static Parsed parse_nested(const char *head, const char *open, const char *middle,
                           const char *close, int count)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    fputs(head, out);
    for (int i = 0; i < count; i++)
        fputs(open, out);
    fputs(middle, out);
    for (int i = 0; i < count; i++)
        fputs(close, out);
    fclose(out);
    Parsed parsed = parse_text("deep.model", text, size);
    free(text);
    return parsed;
}

static void test_deep_nesting(void **state)
{
    (void)state;
    static const struct {
        const char *head, *open, *middle, *close;
    } shapes[] = {
        {"let a = ", "(", "1", ")"},
        {"let a = ", "[", "1", "]"},
        {"let a = ", "f(", "1", ")"},
        {"let a = ", "-", "1", ""},
        {"let a = ", "not ", "1", ""},
        {"let a = 1", " + 1", "", ""},
        {"let a = 1", " ^ 1", "", ""},
        {"let a = x", " |> f", "", ""},
        {"let a = x", ".y", "", ""},
        {"let a = ", "if a then ", "1", " else 2"},
        {"let a = ", "[x for x in ", "y", "]"},
        {"def f() ", "{ if a ", "{ }", "}"},
        {"def f() { ", "def g() { ", "", "}"},
        {"let a = ", "({[", "", ""},
        {"", "}])", "", ""},
        {"let a = ", "\"\" :", "", ""},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int count = 100; count <= 100000; count *= 1000) {
            Parsed parsed = parse_nested(shapes[i].head, shapes[i].open, shapes[i].middle,
                                         shapes[i].close, count);
            assert_true(parsed.tree->depth <= AST_DEPTH_LIMIT + 1);
            if (count > AST_DEPTH_LIMIT && *shapes[i].open != '(')
                assert_true(parsed.errors > 0);
            FILE *nowhere = fopen("/dev/null", "w");
            ast_print(nowhere, parsed.tree);
            fclose(nowhere);
            release(&parsed);
        }
    }
}

static void test_odd_texts(void **state)
{
    (void)state;
    assert_parses("a", "");
    assert_parses("a", "   \n\t ");
    assert_parses("a", "// only a comment, and no line end");
    assert_parses("a", "\xEF\xBB\xBFlet a = 1");
    assert_parses("a", "let a = 1;;; let b = 2 // x\r\n;let c = \"\"\r\n");
    static const char *const wrong[] = {"\"",
                                        "'",
                                        "/*",
                                        "\\",
                                        "\"\\",
                                        "{",
                                        "}",
                                        "(",
                                        ")",
                                        "let",
                                        "let a",
                                        "let a =",
                                        "let a = \"\\\n\"",
                                        "\xff\xfe",
                                        "\xf0\x9f\x98\x80",
                                        "override",
                                        "def",
                                        "module M {;",
                                        "module M {{{",
                                        "train t { minimize",
                                        "1",
                                        "...",
                                        "|>"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        Parsed parsed = parse(wrong[i]);
        if (!parsed.errors)
            fail_msg("'%s' parses", wrong[i]);
        release(&parsed);
    }
}

// ---- messages ----

static char *messages_of(void (*tell)(Sources *sources, uint32_t file), const char *text)
{
    Arena *arena = arena_new();
    Sources *sources = sources_new(arena);
    char *messages = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&messages, &size);
    diag_init(sources, out);
    tell(sources, sources_add_text(sources, "a.model", text));
    diag_flush();
    fclose(out);
    diag_init(NULL, stderr);
    arena_free(arena);
    return messages;
}

static void tell_places(Sources *sources, uint32_t file)
{
    uint32_t other = sources_add_text(sources, "b.model", "module B(x)\n");
    diag_error((Span){file, 12, 15}, "unknown name '%s'", "ome");
    diag_help((Span){file, 4, 7}, "did you mean this?");
    diag_note((Span){file, 10, 11}, "of the same line");
    diag_note((Span){other, 7, 8}, "module B(x)");
    diag_note((Span){0}, "one = 1 by -D");
    diag_warning((Span){file, 0, 17}, "of two lines");
    diag_error((Span){0}, "-D x=1: there is no constant 'x'");
    diag_error((Span){file, 12, 15}, "unknown name '%s'", "ome");
    diag_note((Span){0}, "told before: dropped with its message");
}

static void test_message_form(void **state)
{
    (void)state;
    char *messages = messages_of(tell_places, "let one = 1\nome\nx\n");
    assert_string_equal(messages, "a.model:2:1: error: unknown name 'ome'\n"
                                  "    2 | ome\n"
                                  "      | ^~~\n"
                                  "    1 | let one = 1\n"
                                  "      |     ~~~ help: did you mean this?\n"
                                  "      |           ~ note: of the same line\n"
                                  "b.model:1:8: note: module B(x)\n"
                                  "    1 | module B(x)\n"
                                  "      |        ~\n"
                                  "      = note: one = 1 by -D\n"
                                  "a.model:1:1: warning: of two lines\n"
                                  "    1 | let one = 1\n"
                                  "      | ^~~~~~~~~~~\n"
                                  "pvdmc: error: -D x=1: there is no constant 'x'\n");
    free(messages);
}

static void tell_many(Sources *sources, uint32_t file)
{
    (void)sources;
    for (uint32_t i = 0; i < 30; i++) {
        diag_error((Span){file, 0, 1}, "number %u", i);
        diag_note((Span){0}, "note %u", i);
    }
    assert_true(diag_full());
    assert_int_equal(diag_errors(), 20);
}

static void test_message_limit(void **state)
{
    (void)state;
    char *messages = messages_of(tell_many, "x");
    assert_non_null(strstr(messages, "number 19"));
    assert_non_null(strstr(messages, "note 19"));
    assert_null(strstr(messages, "number 20"));
    assert_null(strstr(messages, "note 20"));
    assert_true(ends_with(messages, "pvdmc: error: too many errors; the first 20 are shown\n"));
    free(messages);
}

static void tell_long_line(Sources *sources, uint32_t file)
{
    uint32_t size = (uint32_t)sources_get(sources, file)->size;
    diag_error((Span){file, size / 2, size / 2 + 3}, "in the middle");
    diag_error((Span){file, 0, size}, "all of it");
    diag_error((Span){file, size, size}, "at the end");
}

static void test_long_lines(void **state)
{
    (void)state;
    char text[5001];
    memset(text, 'x', sizeof text - 1);
    text[2500] = '\t';
    text[2510] = '\x1b';
    text[sizeof text - 1] = '\0';
    char *messages = messages_of(tell_long_line, text);
    assert_null(strchr(messages, '\x1b'));
    for (char *line = messages; *line; line = strchr(line, '\n') + 1)
        assert_true(strchr(line, '\n') - line < 140);
    free(messages);
}

static void test_nearest_name(void **state)
{
    (void)state;
    static const char *const names[] = {"channels", "channel_mult", "heads", "out_layers",
                                        "x",        "Linear"};
    size_t count = sizeof names / sizeof names[0];
    assert_string_equal(nearest_name("chanels", names, count), "channels");
    assert_string_equal(nearest_name("head", names, count), "heads");
    assert_string_equal(nearest_name("haeds", names, count), "heads");
    assert_string_equal(nearest_name("out_layer", names, count), "out_layers");
    assert_string_equal(nearest_name("linear", names, count), "Linear");
    assert_null(nearest_name("y", names, count));
    assert_null(nearest_name("resolution", names, count));
    assert_null(nearest_name("", names, count));
    assert_null(nearest_name("heads", names + 2, 1));
}

// ---- what all stand on ----

static void test_memory(void **state)
{
    (void)state;
    Arena *arena = arena_new();
    for (size_t size = 0; size < 200000; size = size * 3 + 1) {
        unsigned char *bytes = arena_alloc(arena, size);
        assert_int_equal((uintptr_t)bytes % 16, 0);
        for (size_t i = 0; i < size; i++)
            assert_int_equal(bytes[i], 0);
        memset(bytes, 0xff, size);
    }
    assert_string_equal(arena_printf(arena, "%d-%s", 7, "x"), "7-x");
    arena_free(arena);
    arena_free(NULL);

    char name[16];
    const char *first = intern("name0");
    for (int i = 0; i < 5000; i++) {
        snprintf(name, sizeof name, "name%d", i);
        const char *text = intern(name);
        assert_string_equal(text, name);
        assert_ptr_equal(text, intern_n(name, strlen(name)));
    }
    assert_ptr_equal(first, intern("name0"));
    assert_ptr_not_equal(intern("a"), intern_n("ab", 2));
    assert_ptr_equal(intern(""), intern_n("x", 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models_parse),
        cmocka_unit_test(test_reference_parses),
        cmocka_unit_test(test_reference_is_complete),
        cmocka_unit_test(test_wrong_files),
        cmocka_unit_test(test_goes_on),
        cmocka_unit_test(test_spans),
        cmocka_unit_test(test_deep_nesting),
        cmocka_unit_test(test_odd_texts),
        cmocka_unit_test(test_message_form),
        cmocka_unit_test(test_message_limit),
        cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_nearest_name),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
