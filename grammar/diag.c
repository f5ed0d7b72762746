// Messages to the user: one is collected with its notes and helps, then printed as a whole.
//
//   file:line:col: error: short fact
//      12 |     source line
//         |     ^~~~~~ under the whole span
//       9 |     a related line of the same file
//         |     ~~~ note: what it has to do with this
//         = help: the mend
//
// Lines are printed with tabs as spaces and without what a terminal would obey; of a long line
// only the part around the span is shown. A message that was told before is not told again (the
// same code may be elaborated many times), and after MESSAGE_LIMIT errors the rest is dropped.
#include "grammar/ast.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { MESSAGE_LIMIT = 20, NOTE_LIMIT = 16, SHOWN_COLUMNS = 110, TAB = 4, NEAR_LIMIT = 64 };

typedef enum { SAYS_NOTE, SAYS_HELP } NoteKind;

typedef struct {
    NoteKind kind;
    Span span;
    char *text; // malloc'ed
} Note;

typedef struct {
    bool warning;
    Span span;
    char *text; // malloc'ed; NULL: no message is pending
    Note notes[NOTE_LIMIT];
    uint32_t note_count;
} Message;

static struct {
    const Sources *sources;
    FILE *out;
    Message pending;
    bool dropped; // notes that follow belong to a message that is not told
    uint32_t errors, warnings;
    uint64_t *told; // hashes of the messages so far
    size_t told_count, told_capacity;
} diag;

// ---- source lines ----

typedef struct {
    uint32_t line, column; // of the span's first character, from 1
    const char *text;      // the line, without its end
    size_t size;
    size_t begin, end; // the span's bytes in the line
} Place;

static Place find_place(Span span)
{
    const SourceFile *source = sources_get(diag.sources, span.file);
    size_t begin = span.begin < source->size ? span.begin : source->size;
    size_t from = begin, to = begin;
    while (from > 0 && source->text[from - 1] != '\n')
        from--;
    while (to < source->size && source->text[to] != '\n')
        to++;
    while (to > from && to > begin && source->text[to - 1] == '\r')
        to--;
    Place place = {.text = source->text + from, .size = to - from, .begin = begin - from};
    place.end = span.end > to ? place.size : span.end > begin ? span.end - from : place.begin;
    sources_place(diag.sources, span.file, (uint32_t)begin, &place.line, &place.column);
    return place;
}

// The length of the well-formed UTF-8 character here, or 0.
static size_t character_length(const char *text, size_t size)
{
    unsigned char first = (unsigned char)text[0];
    size_t length = first < 0x80   ? 1
                    : first < 0xc2 ? 0
                    : first < 0xe0 ? 2
                    : first < 0xf0 ? 3
                    : first < 0xf5 ? 4
                                   : 0;
    if (length > size)
        return 0;
    for (size_t i = 1; i < length; i++) {
        if (((unsigned char)text[i] & 0xc0) != 0x80)
            return 0;
    }
    return length;
}

// One character as it is shown: where it starts on the screen, and its bytes.
typedef struct {
    size_t column, width;
    const char *text;
    size_t length;
} Shown;

// Steps over one character at *offset.
static Shown show_character(const Place *place, size_t *offset, size_t column)
{
    const char *at = place->text + *offset;
    size_t length = character_length(at, place->size - *offset);
    Shown shown = {.column = column, .width = 1, .text = at, .length = length};
    if (*at == '\t') {
        shown.width = TAB - column % TAB;
        shown.text = "        ";
        shown.length = shown.width;
    } else if (length == 0 || (unsigned char)*at < 0x20 || *at == 0x7f) {
        shown.text = "?";
        shown.length = 1;
    }
    *offset += length ? length : 1;
    return shown;
}

// The screen column of a byte of the line.
static size_t screen_column(const Place *place, size_t byte)
{
    size_t column = 0;
    for (size_t offset = 0; offset < byte && offset < place->size;)
        column += show_character(place, &offset, column).width;
    return column;
}

// What the message at hand has printed last, so that nothing is printed twice.
typedef struct {
    uint32_t file, line;
    size_t from; // first column that was shown
} Printed;

// Prints a line of source, if it does not stand there already, and below it `first` and `rest`
// under the span. What is shown of the line are SHOWN_COLUMNS columns, from the first or from
// some way in front of the span.
static void print_line(Printed *printed, uint32_t file, const Place *place, char first, char rest)
{
    size_t begin = screen_column(place, place->begin), end = screen_column(place, place->end);
    size_t width = screen_column(place, place->size);
    size_t from = width > SHOWN_COLUMNS && begin + 40 > SHOWN_COLUMNS ? begin - 60 : 0;
    size_t to = width > from + SHOWN_COLUMNS ? from + SHOWN_COLUMNS : width;
    Printed this = {file, place->line, from};
    if (this.file != printed->file || this.line != printed->line || this.from != printed->from) {
        fprintf(diag.out, "%5u | %s", place->line, from > 0 ? "..." : "");
        size_t column = 0;
        for (size_t offset = 0; offset < place->size && column < to;) {
            Shown shown = show_character(place, &offset, column);
            if (column >= from)
                fwrite(shown.text, 1, shown.length, diag.out);
            column += shown.width;
        }
        fprintf(diag.out, "%s\n", to < width ? "..." : "");
        *printed = this;
    }
    fprintf(diag.out, "      | %*s%c", (int)(begin - from) + (from > 0 ? 3 : 0), "", first);
    for (size_t i = begin + 1; i < (end < to ? end : to); i++)
        fputc(rest, diag.out);
}

// ---- messages ----

// The head of a message or of a note in another file.
static void print_head(uint32_t file, const Place *place, const char *word, const char *text)
{
    fprintf(diag.out, "%s:%u:%u: %s: %s\n", sources_get(diag.sources, file)->path, place->line,
            place->column, word, text);
}

static void print_note(const Note *note, Printed *printed)
{
    const char *word = note->kind == SAYS_HELP ? "help" : "note";
    uint32_t file = note->span.file;
    if (file == 0 || !diag.sources) {
        fprintf(diag.out, "      = %s: %s\n", word, note->text);
        return;
    }
    Place place = find_place(note->span);
    bool same_file = file == printed->file;
    if (!same_file)
        print_head(file, &place, word, note->text);
    print_line(printed, file, &place, '~', '~');
    if (same_file)
        fprintf(diag.out, " %s: %s", word, note->text);
    fputc('\n', diag.out);
}

static void print_message(const Message *message)
{
    const char *word = message->warning ? "warning" : "error";
    Printed printed = {0};
    if (message->span.file == 0 || !diag.sources) {
        fprintf(diag.out, "pvdmc: %s: %s\n", word, message->text);
    } else {
        Place place = find_place(message->span);
        print_head(message->span.file, &place, word, message->text);
        print_line(&printed, message->span.file, &place, '^', '~');
        fputc('\n', diag.out);
    }
    for (uint32_t i = 0; i < message->note_count; i++)
        print_note(&message->notes[i], &printed);
}

// Prints the pending message, if there is one.
static void tell_pending(void)
{
    Message *message = &diag.pending;
    if (!message->text)
        return;
    print_message(message);
    free(message->text);
    for (uint32_t i = 0; i < message->note_count; i++)
        free(message->notes[i].text);
    *message = (Message){0};
}

static char *format_text(const char *format, va_list args)
{
    char *text = NULL;
    if (vasprintf(&text, format, args) < 0)
        bug("message '%s' cannot be printed", format);
    return text;
}

// Whether this very message was told before; remembers it.
static bool was_told(Span span, const char *text)
{
    uint64_t place[3] = {span.file, span.begin, span.end};
    uint64_t hash = hash_bytes(place, sizeof place) ^ 3 * hash_bytes(text, strlen(text));
    for (size_t i = 0; i < diag.told_count; i++) {
        if (diag.told[i] == hash)
            return true;
    }
    diag.told = grow_array(diag.told, &diag.told_capacity, diag.told_count, sizeof *diag.told);
    diag.told[diag.told_count++] = hash;
    return false;
}

static void start_message(bool warning, Span span, char *text)
{
    uint32_t *count = warning ? &diag.warnings : &diag.errors;
    tell_pending();
    diag.dropped = *count >= MESSAGE_LIMIT || was_told(span, text);
    if (diag.dropped) {
        free(text);
        return;
    }
    *count += 1;
    diag.pending = (Message){.warning = warning, .span = span, .text = text};
}

static void add_note(NoteKind kind, Span span, char *text)
{
    Message *message = &diag.pending;
    if (diag.dropped || !message->text || message->note_count == NOTE_LIMIT) {
        free(text);
        return;
    }
    message->notes[message->note_count++] = (Note){kind, span, text};
}

void diag_init(Sources *sources, FILE *out)
{
    tell_pending();
    free(diag.told);
    memset(&diag, 0, sizeof diag);
    diag.sources = sources;
    diag.out = out;
}

void diag_error(Span span, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    start_message(false, span, format_text(format, args));
    va_end(args);
}

void diag_warning(Span span, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    start_message(true, span, format_text(format, args));
    va_end(args);
}

void diag_note(Span span, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    add_note(SAYS_NOTE, span, format_text(format, args));
    va_end(args);
}

void diag_help(Span span, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    add_note(SAYS_HELP, span, format_text(format, args));
    va_end(args);
}

uint32_t diag_errors(void)
{
    return diag.errors;
}

bool diag_full(void)
{
    return diag.errors >= MESSAGE_LIMIT;
}

void diag_flush(void)
{
    tell_pending();
    if (diag_full())
        fprintf(diag.out, "pvdmc: error: too many errors; the first %d are shown\n", MESSAGE_LIMIT);
    fflush(diag.out);
}

// ---- names that are nearly right ----

// Edit distance in which two neighbours that change places count once (optimal string
// alignment; Damerau 1964). Upper and lower case differ by nothing.
static size_t edit_distance(const char *a, size_t a_size, const char *b, size_t b_size)
{
    size_t rows[3][NEAR_LIMIT + 1];
    for (size_t j = 0; j <= b_size; j++)
        rows[0][j] = j;
    for (size_t i = 1; i <= a_size; i++) {
        size_t *row = rows[i % 3], *above = rows[(i + 2) % 3], *two_above = rows[(i + 1) % 3];
        row[0] = i;
        for (size_t j = 1; j <= b_size; j++) {
            int here = tolower((unsigned char)a[i - 1]), there = tolower((unsigned char)b[j - 1]);
            size_t best = above[j - 1] + (here != there);
            if (above[j] + 1 < best)
                best = above[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            bool crossed = i > 1 && j > 1 && here == tolower((unsigned char)b[j - 2]) &&
                           there == tolower((unsigned char)a[i - 2]);
            if (crossed && two_above[j - 2] + 1 < best)
                best = two_above[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[a_size % 3][b_size];
}

const char *nearest_name(const char *name, const char *const *candidates, size_t count)
{
    size_t size = strlen(name);
    const char *nearest = NULL;
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < count && size <= NEAR_LIMIT; i++) {
        size_t other = strlen(candidates[i]);
        if (other > NEAR_LIMIT || strcmp(name, candidates[i]) == 0)
            continue;
        size_t longer = size > other ? size : other, shorter = size + other - longer;
        if (shorter >= 3 && memcmp(name, candidates[i], shorter) == 0 && least > 3) {
            least = 3; // one begins with the other: `pad` for `padding`
            nearest = candidates[i];
        }
        size_t limit = (longer + 1) / 3 < 3 ? (longer + 1) / 3 : 3;
        if (longer - shorter > limit)
            continue;
        size_t distance = edit_distance(name, size, candidates[i], other);
        if (distance <= limit && distance < least) {
            least = distance;
            nearest = candidates[i];
        }
    }
    return nearest;
}
