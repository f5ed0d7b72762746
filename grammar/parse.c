// Between scanner and parser: the stream of tokens, syntax errors, and the way on after one.
//
// The stream keeps the open brackets. After an error the parser unwinds to a statement or a
// declaration, and parser_resync skips tokens to where one begins: a new line with a word that
// starts a statement and no bracket open but those of the blocks around; the '}' of the block; or
// a word that only starts declarations, at the left margin, in front of which every open block is
// closed. A line gets one message at most, so that one slip does not become three.
#include "grammar/parser.h"
#include "grammar/model.tab.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

// The scanner's functions (generated).
int scan_lex(void *scanner);
int scan_lex_init_extra(Parser *parser, void **scanner);
int scan_lex_destroy(void *scanner);
struct yy_buffer_state *scan__scan_bytes(const char *bytes, int count, void *scanner);

int parser_lex(SymbolValue *value, Span *where, Parser *parser);

// ---- messages ----

// Whether a line was told already: no line end lies between the last message and `at`.
static bool line_is_told(const Parser *parser, uint32_t at)
{
    if (!parser->told)
        return false;
    uint32_t from = parser->told_at < at ? parser->told_at : at;
    uint32_t to = parser->told_at < at ? at : parser->told_at;
    return memchr(parser->text + from, '\n', to - from) == NULL;
}

static void set_told(Parser *parser, Span span)
{
    parser->told = true;
    parser->told_at = span.begin;
    if (diag_full())
        parser->stop = true;
}

// A token as a message names it: 'x', "text", the end of the file.
static const char *token_text(Parser *parser, Span span)
{
    enum { LONGEST = 24 };
    if (span.end <= span.begin)
        return "the end of the file";
    int length = (int)(span.end - span.begin);
    const char *text = parser->text + span.begin;
    const char *quote = *text == '"' || *text == '\'' ? "" : "'";
    if (length <= LONGEST)
        return arena_printf(parser->arena, "%s%.*s%s", quote, length, text, quote);
    length = LONGEST;
    while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80)
        length--; // a character is not cut
    return arena_printf(parser->arena, "%s%.*s...%s", quote, length, text,
                        *text == '"' ? "\"" : quote);
}

void parser_too_deep(Parser *parser, Span span)
{
    if (!parser->too_deep)
        diag_error(span, "this is nested too deeply (more than %d levels)", AST_DEPTH_LIMIT);
    parser->too_deep = true;
    set_told(parser, span);
}

void parser_wrong_pipe(Parser *parser, Span piped, Span op, Span operand)
{
    (void)operand;
    int length = (int)(piped.end - piped.begin);
    diag_error(op,
               "%s cannot follow a '|>': what '|>' gives its value to is a name, a call, an "
               "index or a field",
               token_text(parser, op));
    if (length <= 40 && !memchr(parser->text + piped.begin, '\n', (size_t)length))
        diag_help((Span){0}, "(%.*s) %.*s ... takes the result on", length,
                  parser->text + piped.begin, (int)(op.end - op.begin), parser->text + op.begin);
    else
        diag_help((Span){0}, "put what comes before in parentheses, or bind it to a name");
    set_told(parser, op);
}

void parser_wrong_chain(Parser *parser, Span op)
{
    diag_error(op, "comparisons do not chain");
    diag_help((Span){0}, "a < b < c is written a < b and b < c");
    set_told(parser, op);
}

// ---- the scanner's part: values of tokens, and what is no token ----

void parser_lexical_error(Parser *parser, const char *help, const char *format, ...)
{
    Span span = parser->scanned.span;
    va_list args;
    va_start(args, format);
    char text[200];
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    diag_error(span, "%s", text);
    if (help)
        diag_help((Span){0}, "%s", help);
    set_told(parser, span);
}

int parser_foreign(Parser *parser, int kind, const char *wanted, const char *help)
{
    Span span = parser->scanned.span;
    const char *found = token_text(parser, span);
    const char *quote = wanted ? "'" : "";
    if (!wanted)
        wanted = "a string in double quotes";
    if (parser->last.span.end > 0)
        diag_error(span, "expected %s%s%s after %s, found %s", quote, wanted, quote,
                   token_text(parser, parser->last.span), found);
    else
        diag_error(span, "expected %s%s%s, found %s", quote, wanted, quote, found);
    if (help)
        diag_help((Span){0}, "%s", help);
    set_told(parser, span);
    return kind;
}

void parser_string(Parser *parser, const char *text, size_t length)
{
    char *resolved = malloc(length + 1);
    if (!resolved)
        bug("no memory for a string of %zu bytes", length);
    size_t used = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] != '\\') {
            resolved[used++] = text[i];
            continue;
        }
        char next = text[++i]; // the scanner takes no string that ends in one backslash
        if (next == 'n' || next == 't') {
            resolved[used++] = next == 'n' ? '\n' : '\t';
        } else if (next == '"' || next == '\\') {
            resolved[used++] = next;
        } else {
            uint32_t at = parser->scanned.span.begin + (uint32_t)i;
            Span span = {parser->file, at, at + 2};
            diag_error(span, "'\\%c' means nothing in a string",
                       isprint((unsigned char)next) ? next : '?');
            diag_help((Span){0}, "\\\" \\\\ \\n and \\t do");
            set_told(parser, span);
        }
    }
    parser->scanned.value.text = intern_n(resolved, used);
    free(resolved);
}

// `text` without the '_' between its digits; the scanner's buffer is left alone.
static char *without_underscores(Parser *parser, const char *text)
{
    char *plain = arena_copy(parser->arena, text, strlen(text) + 1);
    char *to = plain;
    for (const char *from = plain; *from; from++) {
        if (*from != '_')
            *to++ = *from;
    }
    *to = '\0';
    return plain;
}

void parser_integer(Parser *parser, const char *text)
{
    errno = 0;
    int64_t value = strtoll(without_underscores(parser, text), NULL, 10);
    if (errno == ERANGE)
        parser_lexical_error(parser, NULL, "an integer is at most %" PRId64, INT64_MAX);
    parser->scanned.value.integer = value;
}

void parser_real(Parser *parser, const char *text)
{
    errno = 0;
    double value = strtod(without_underscores(parser, text), NULL);
    if (errno == ERANGE && value > 1) {
        parser_lexical_error(parser, NULL, "a number is at most 1.797e308");
        value = 0;
    }
    parser->scanned.value.real = value;
}

void parser_bad_number(Parser *parser, const char *text)
{
    parser_lexical_error(parser,
                         "a number is written 1_000, 0.5 or 1e-4; a name starts with a letter",
                         "'%s' is neither a number nor a name", text);
    parser->scanned.value.integer = 0;
}

// A second one on a line is the other end of the first.
void parser_unclosed_string(Parser *parser)
{
    if (!line_is_told(parser, parser->scanned.span.begin))
        parser_lexical_error(parser, "a string ends on its line", "the string is not closed");
}

void parser_bad_character(Parser *parser, const char *text)
{
    static const struct {
        const char *text, *help;
    } known[] = {
        {"?", "a choice is written: if condition then a else b"},
        {"$", "a value stands in a string as {name}"},
        {"'", "a string stands in double quotes, and ends on its line"},
        {"\xE2\x80\x9C", "a string stands in plain double quotes: \"...\""},
        {"\xE2\x80\x9D", "a string stands in plain double quotes: \"...\""},
        {"\xC3\x97", "write *"},
        {"\xE2\x88\x92", "write -"},
        {"\xE2\x86\x92", "write ->"},
        {"\xE2\x89\xA4", "write <="},
        {"\xE2\x89\xA5", "write >="},
        {"\xE2\x89\xA0", "write !="},
        {"\xC2\xB2", "write ^ 2"},
    };
    const char *help = NULL;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(text, known[i].text) == 0)
            help = known[i].help;
    }
    if (line_is_told(parser, parser->scanned.span.begin))
        return;
    unsigned char byte = (unsigned char)text[0];
    if (text[0] && text[1])
        parser_lexical_error(parser, help, "'%s' means nothing here", text);
    else if (isprint(byte))
        parser_lexical_error(parser, help, "'%c' means nothing here", byte);
    else
        parser_lexical_error(parser, NULL, "a byte of value 0x%02x means nothing here", byte);
}

// ---- the stream of tokens ----

static char closer_of(char open)
{
    return open == '(' ? ')' : open == '[' ? ']' : '}';
}

// Keeps the open brackets. A closer closes all up to its own kind; a '}' has precedence over
// parentheses that were forgotten, other strays are left to the parser.
static void note_bracket(Parser *parser, const Token *token)
{
    int kind = token->kind;
    if (kind == '(' || kind == '[' || kind == '{') {
        parser->brackets = grow_array(parser->brackets, &parser->bracket_capacity,
                                      parser->bracket_count, sizeof *parser->brackets);
        parser->brackets[parser->bracket_count++] = (Bracket){(char)kind, token->span};
        return;
    }
    if (kind != ')' && kind != ']' && kind != '}')
        return;
    for (size_t i = parser->bracket_count; i > 0; i--) {
        char open = parser->brackets[i - 1].open;
        if (closer_of(open) == kind) {
            parser->bracket_count = i - 1;
            return;
        }
        if (open == '{')
            return;
    }
}

// The next token of the file; `behind` is where the one before it ended.
static Token scan_token(Parser *parser, uint32_t behind)
{
    Token *token = &parser->scanned;
    token->kind = parser->stop ? T_END : scan_lex(parser->scanner);
    if (token->kind == T_END)
        token->span = (Span){parser->file, parser->size, parser->size};
    uint32_t begin = token->span.begin;
    token->first = behind == 0 || memchr(parser->text + behind, '\n', begin - behind) != NULL;
    return *token;
}

// What bison calls for its next token.
int parser_lex(SymbolValue *value, Span *where, Parser *parser)
{
    note_bracket(parser, &parser->last);
    if (parser->last.span.end > parser->last.span.begin)
        parser->before = parser->last.span;
    if (parser->again_closers > 0) {
        uint32_t at = parser->again.span.begin;
        parser->again_closers--;
        parser->last = (Token){.kind = '}', .span = {parser->file, at, at}};
    } else if (parser->has_again) {
        parser->last = parser->again;
        parser->has_again = false;
    } else {
        parser->last = scan_token(parser, parser->last.span.end);
    }
    *value = parser->last.value;
    *where = parser->last.span;
    return parser->last.kind;
}

// ---- the way on after an error ----

// Words that start a declaration and nothing else.
static bool only_declares(int kind)
{
    return kind == T_CONST || kind == T_LET || kind == T_TYPE || kind == T_MODEL ||
           kind == T_MODULE || kind == T_PROGRAM || kind == T_TRAIN || kind == T_SAMPLE ||
           kind == T_IMPORT || kind == T_OVERRIDE;
}

// Words that start a declaration or a statement, and do not occur inside an expression.
static bool only_states(int kind)
{
    return kind == T_DEF || kind == T_OPTION || kind == T_ASSERT || kind == T_RETURN ||
           kind == T_MINIMIZE || kind == T_DATA || kind == T_IGNORE || kind == T_REPORT ||
           kind == T_YIELD;
}

// How many brackets stand up to the innermost block's, that included.
static size_t block_depth(const Parser *parser)
{
    size_t depth = parser->bracket_count;
    while (depth > 0 && parser->brackets[depth - 1].open != '{')
        depth--;
    return depth;
}

// Whether parsing can go on at this token, in the block that `base` brackets open.
static bool can_resume(const Parser *parser, const Token *token, size_t base)
{
    int kind = token->kind;
    bool margin = token->span.begin == 0 || parser->text[token->span.begin - 1] == '\n';
    if (kind == T_END || (only_declares(kind) && margin))
        return true;
    if (base == 0) {
        bool starts = kind == T_DEF || kind == T_OPTION || kind == T_ASSERT || only_declares(kind);
        return starts && token->first && (margin || parser->bracket_count == 0);
    }
    size_t inner = block_depth(parser);
    if (kind == '}')
        return inner == base;
    if (inner != base)
        return false; // inside a block that the error left open
    if (kind == ';')
        return parser->bracket_count == base;
    if (!token->first)
        return false;
    bool starts = kind == T_NAME || kind == T_FOR || kind == T_IF;
    return only_states(kind) || (starts && parser->bracket_count == base);
}

bool parser_resync(Parser *parser)
{
    if (parser->stop)
        return false;
    size_t base = block_depth(parser);
    parser->bracket_count = base;
    Token token = parser->last;
    bool stuck = parser->resumed_at == token.span.begin + 1; // it did not fit then either
    if (stuck && token.kind == T_END)
        return false;
    while (stuck || !can_resume(parser, &token, base)) {
        stuck = false;
        note_bracket(parser, &token);
        parser->before = token.span;
        token = scan_token(parser, token.span.end);
    }
    if (parser->bracket_count > base)
        parser->bracket_count = base;
    bool closes = token.kind == T_END || only_declares(token.kind);
    for (size_t i = 0; closes && i < parser->bracket_count; i++)
        parser->again_closers += parser->brackets[i].open == '{';
    parser->resumed_at = token.span.begin + 1;
    parser->again = token;
    parser->has_again = true;
    parser->last = (Token){.span = parser->before}; // whatever it was, its bracket is noted
    parser->last.kind = T_NAME;
    return true;
}

// ---- syntax errors: "expected X after 'y', found 'z'" ----

typedef struct {
    const char *const *names; // as bison has them: '(' with quotes, words without
    int count;
} Expected;

static bool expects(const Expected *expected, const char *name)
{
    for (int i = 0; i < expected->count; i++) {
        if (strcmp(expected->names[i], name) == 0)
            return true;
    }
    return false;
}

static bool is_one_of(const char *name, const char *const *list)
{
    for (; *list; list++) {
        if (strcmp(name, *list) == 0)
            return true;
    }
    return false;
}

// clang-format off
static const char *const operators[] = {
    "or", "and", "==", "!=", "<=", ">=", "'<'", "'>'", "in", "..", "'+'", "'-'", "'*'", "'/'",
    "'%'", "'^'", "|>", NULL};
static const char *const starts_postfix[] = {"'('", "'['", "'.'", NULL};
static const char *const index_only[] = {"..", "...", NULL};
static const char *const only_in_lists[] = {"for", "':'", NULL};
static const char *const starts_expression[] = {
    "an integer", "a number", "a string", "true", "false", "none", "'('", "'['", "'-'", "not",
    "if", "a name", NULL};
static const char *const starts_statement[] = {
    "return", "for", "if", "minimize", "data", "ignore", "report", "yield", "def", "option",
    "assert", "a name", "';'", "'}'", NULL};
static const char *const starts_declaration[] = {
    "const", "let", "type", "model", "module", "program", "train", "sample", "import",
    "override", "def", "option", "assert", "';'", "the end of the file", NULL};
// clang-format on

typedef struct {
    const char *at[8];
    int count;
} Phrases;

static void add_phrase(Phrases *phrases, const char *phrase)
{
    if (phrases->count < (int)(sizeof phrases->at / sizeof phrases->at[0]))
        phrases->at[phrases->count++] = phrase;
}

// What goes without saying: the members of a class that is named as a whole, ...
static bool is_hidden(const Expected *expected, const char *name)
{
    bool ended = expects(expected, "|>"), expression = expects(expected, "an integer") && !ended;
    if (expression && (is_one_of(name, starts_expression) || is_one_of(name, index_only)))
        return true;
    if (expects(expected, "return") && is_one_of(name, starts_statement))
        return true;
    if (expects(expected, "const") && is_one_of(name, starts_declaration))
        return true;
    if (ended && (is_one_of(name, operators) || is_one_of(name, only_in_lists)))
        return true;
    if (expects(expected, "'.'") && is_one_of(name, starts_postfix))
        return true;
    // ... and the type and the default that may follow a name
    bool parameter = expects(expected, "','") && expects(expected, "')'");
    if (strcmp(name, "':'") == 0)
        return expects(expected, "'='");
    return strcmp(name, "'='") == 0 && parameter;
}

// What was expected, in few words. A token that is the first on its line was not meant to go on
// with the line above, so that operators are not named.
static Phrases phrase_expected(const Expected *expected, const Token *found)
{
    bool ended = expects(expected, "|>"); // an expression may end here
    bool expression = expects(expected, "an integer") && !ended;
    bool statement = expects(expected, "return");
    bool declaration = expects(expected, "const");
    Phrases phrases = {.count = 0};
    if (expects(expected, "+=")) {
        add_phrase(&phrases, "=");
        return phrases;
    }
    if (statement && !expression && (found->kind == T_END || only_declares(found->kind))) {
        add_phrase(&phrases, "'}'");
        return phrases;
    }
    if (expression)
        add_phrase(&phrases, "an expression");
    else if (expects(expected, "','"))
        add_phrase(&phrases, "','");
    for (int i = 0; i < expected->count; i++) {
        const char *name = expected->names[i];
        if (strcmp(name, "','") != 0 && !is_hidden(expected, name))
            add_phrase(&phrases, name);
    }
    if (ended && (statement || declaration) && phrases.count <= 1 && !found->first)
        add_phrase(&phrases, "an operator");
    if (statement)
        add_phrase(&phrases, "a statement");
    if (declaration)
        add_phrase(&phrases, "a declaration");
    return phrases;
}

static const char *join_phrases(Parser *parser, const Phrases *phrases)
{
    const char *text = "";
    for (int i = 0; i < phrases->count; i++) {
        const char *phrase = phrases->at[i];
        bool plain = *phrase == '\'' || strchr(phrase, ' ');
        const char *join = i == 0 ? "" : i + 1 < phrases->count ? ", " : " or ";
        text = arena_printf(parser->arena, "%s%s%s%s%s", text, join, plain ? "" : "'", phrase,
                            plain ? "" : "'");
    }
    return text;
}

static bool is_word(Parser *parser, Span span, const char *word)
{
    size_t length = strlen(word);
    return span.end - span.begin == length && memcmp(parser->text + span.begin, word, length) == 0;
}

// Words of other languages, with what stands for them here.
static const char *foreign_word(Parser *parser, Span span)
{
    static const struct {
        const char *word, *help;
    } words[] = {
        {"elif", "write 'else if'"},
        {"elseif", "write 'else if'"},
        {"while", "there is no 'while'; 'for i in 0..n' repeats"},
        {"do", "'for i in 0..n { ... }' repeats"},
        {"lambda", "name the function: def f(x) = ...; a hole makes one too: leaky_relu(_, 0.2)"},
        {"fn", "a function is 'def'"},
        {"func", "a function is 'def'"},
        {"function", "a function is 'def'"},
        {"class", "a class of layers is 'module'"},
        {"struct", "a class of layers is 'module'"},
        {"var", "'=' binds a name; a file has 'let' and 'const'"},
        {"val", "'=' binds a name; a file has 'let' and 'const'"},
        {"from", "import \"file.model\" takes all declarations of a file"},
        {"pass", "an empty block is { }"},
        {"print", "'report' shows a value while training"},
        {"try", "there are no exceptions; 'assert' stops the compiler"},
        {"self", "fields are named without 'self'"},
        {"break", "there is no 'break': loops run to their end"},
        {"continue", "there is no 'continue': an 'if' chooses"},
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (is_word(parser, span, words[i].word))
            return words[i].help;
    }
    return NULL;
}

// Whether the text behind the token before the error goes on with "//=" on its line.
static bool floor_divides(const Parser *parser)
{
    const char *at = parser->text + parser->before.end;
    while (*at == ' ' || *at == '\t')
        at++;
    return strncmp(at, "//=", 3) == 0;
}

// Whether only space stands in front of a token on its line.
static bool begins_line(const Parser *parser, Span span)
{
    uint32_t at = span.begin;
    while (at > 0 && (parser->text[at - 1] == ' ' || parser->text[at - 1] == '\t'))
        at--;
    return at == 0 || parser->text[at - 1] == '\n';
}

// The mend of a slip in which the token that was found says what was meant; else NULL.
static const char *help_by_token(Parser *parser, const Expected *expected)
{
    bool ended = expects(expected, "|>"), binds = expects(expected, "+=");
    switch (parser->last.kind) {
    case '=':
        if (ended && begins_line(parser, parser->before))
            return arena_printf(parser->arena, "what stands above is not complete: it takes %s in",
                                token_text(parser, parser->before));
        return ended ? "'==' compares; '=' binds a name" : NULL;
    case '(':
        return binds ? "the value of a call is bound, y = f(x), or returned; a call alone has no "
                       "effect"
                     : NULL;
    case '[':
    case '.':
        if (binds)
            return "nothing is changed in place: bind a new list, tensor or module";
        return expects(expected, "an integer")
                   ? "a number has a digit on both sides of its point: 0.5"
                   : NULL;
    case ':':
        if (expects(expected, "'{'"))
            return "a block stands in braces: { ... }";
        return expects(expected, "']'")
                   ? "the name of an element is a name or a string: [norm: a, \"net{i}\": b]"
                   : NULL;
    case ',':
        return ended && expects(expected, "')'") && !expects(expected, "','")
                   ? "several values are a list: [a, b]"
                   : NULL;
    case T_ARROW:
        return expects(expected, "')'") ? "results follow the parameters: f(x) -> y" : NULL;
    case T_ELSE:
    case T_IF:
        return ended || expects(expected, "'{'") ? "a choice is written: if condition then a else b"
                                                 : NULL;
    case T_INT:
        return is_word(parser, parser->before, ".") ? "an element is read by its index: layers[0]"
                                                    : NULL;
    case '+':
        return expects(expected, "an integer") ? "there is no unary '+'" : NULL;
    case T_NAME:
        if (is_word(parser, parser->before, "import"))
            return "the name of a file stands in quotes: import \"unet.model\"";
        return expects(expected, "const") ? "a file binds a name with 'let' or 'const'" : NULL;
    default:
        return NULL;
    }
}

// The mend, where the slip is a known one; else NULL.
static const char *syntax_help(Parser *parser, const Expected *expected)
{
    const char *word = foreign_word(parser, parser->before);
    if (!word && expects(expected, "const"))
        word = foreign_word(parser, parser->last.span);
    if (word)
        return word;
    if (floor_divides(parser))
        return "'//' starts a comment; x = div(x, y) rounds down";
    const char *help = help_by_token(parser, expected);
    if (help)
        return help;
    if (expects(expected, "'{'") && !expects(expected, "','") && !expects(expected, "'='"))
        return "a block stands in braces, also one of a single statement";
    if (expects(expected, "else"))
        return "only an element of a list may lack its 'else'";
    if (is_word(parser, parser->before, "..") && !expects(expected, "..."))
        return "only a range inside an index is open: x[1..]";
    Span span = parser->last.span;
    bool name = expects(expected, "a name") && !expects(expected, "an integer") &&
                !expects(expected, "return");
    if (name && span.end > span.begin && isalpha((unsigned char)parser->text[span.begin]))
        return arena_printf(parser->arena, "%s is a word of the language and names nothing else",
                            token_text(parser, span));
    return NULL;
}

// Whether a token is a closer without an open bracket of its kind in the same block.
static bool closes_nothing(const Parser *parser, int kind)
{
    if (kind != ')' && kind != ']' && kind != '}')
        return false;
    for (size_t i = parser->bracket_count; i > 0; i--) {
        char open = parser->brackets[i - 1].open;
        if (closer_of(open) == kind)
            return false;
        if (open == '{')
            return true;
    }
    return true;
}

// The bracket whose closer was expected, when that is the only thing, and when it was opened on
// another line than `at`; or NULL.
static const Bracket *unclosed(const Parser *parser, const Phrases *phrases, uint32_t at)
{
    if (parser->bracket_count == 0)
        return NULL;
    const Bracket *bracket = &parser->brackets[parser->bracket_count - 1];
    char name[] = {'\'', closer_of(bracket->open), '\'', '\0'};
    bool wanted = false;
    for (int i = 0; i < phrases->count; i++)
        wanted = wanted || strcmp(phrases->at[i], name) == 0;
    uint32_t begin = bracket->span.begin;
    return wanted && memchr(parser->text + begin, '\n', at - begin) ? bracket : NULL;
}

void parser_syntax_error(Parser *parser, const char *const *names, int count)
{
    Expected expected = {names, count};
    Token *found = &parser->last;
    Span before = parser->before, span = found->span;
    bool complete = expects(&expected, "|>") || !expects(&expected, "an integer");
    bool next_thing = found->kind != T_END && complete &&
                      (expects(&expected, "const") || expects(&expected, "return"));
    if (before.end > 0 && (found->kind == T_END || (found->first && !next_thing)))
        span = (Span){parser->file, before.end, before.end}; // where something is missing
    if (parser->stop || line_is_told(parser, span.begin) || line_is_told(parser, found->span.begin))
        return;
    if (found->kind == '}' && expects(&expected, "const") && parser->told)
        return; // the end of a block that an earlier error swallowed
    if (closes_nothing(parser, found->kind)) {
        diag_error(found->span, "%s closes nothing", token_text(parser, found->span));
        set_told(parser, found->span);
        return;
    }
    Phrases phrases = phrase_expected(&expected, found);
    const char *wanted = join_phrases(parser, &phrases);
    const char *found_text = token_text(parser, found->span);
    if (phrases.count == 0)
        diag_error(span, "%s does not fit here", found_text);
    else if (before.end > 0 && !(next_thing && found->first))
        diag_error(span, "expected %s after %s, found %s", wanted, token_text(parser, before),
                   found_text);
    else
        diag_error(span, "expected %s, found %s", wanted, found_text);
    const Bracket *bracket = unclosed(parser, &phrases, span.begin);
    if (bracket)
        diag_note(bracket->span, "opened here");
    const char *help = syntax_help(parser, &expected);
    if (help)
        diag_help((Span){0}, "%s", help);
    set_told(parser, span);
}

// ---- the whole ----

Ast *parse_model(Sources *sources, uint32_t file)
{
    const SourceFile *source = sources_get(sources, file);
    Parser parser = {
        .sources = sources,
        .arena = sources_arena(sources),
        .file = file,
        .text = source->text,
        .size = (uint32_t)source->size,
        .last = {.kind = T_END, .span = {file, 0, 0}},
    };
    parser.scanned.span.file = file;
    if (scan_lex_init_extra(&parser, &parser.scanner) != 0 ||
        !scan__scan_bytes(source->text, (int)source->size, parser.scanner))
        bug("the scanner cannot be set up");
    parser_parse(&parser);
    scan_lex_destroy(parser.scanner);
    free(parser.brackets);
    if (!parser.tree)
        parser.tree = ast_leaf(&parser, (Span){file, 0, 0}, AST_FILE);
    parser.tree->span = (Span){file, 0, (uint32_t)source->size};
    return parser.tree;
}
