// Logs of a run: JSON lines and TensorBoard events. See log.h.
//
// An event file is a sequence of records: length (8 bytes), masked CRC-32C of it (4), a protobuf
// Event, masked CRC-32C of that. The few fields in use are encoded here by hand:
//   Event   wall_time = 1 (double), step = 2, file_version = 3 (string), summary = 5,
//           session_log = 7 (status = 1: START = 1)
//   Summary value = 1 (repeated: tag = 1, simple_value = 2 (float), image = 4)
//   Image   height = 1, width = 2, colorspace = 3, encoded_image_string = 4
// Formats: tensorflow/core/lib/io/record_writer.cc, tensorflow/core/util/event.proto
#include "runtime/log.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/file.h"

typedef struct {
    uint8_t *bytes;
    size_t size, capacity;
} Buffer;

struct PvLog {
    FILE *lines, *events;
    json_t *row; // numbers since the last row, in their order
    double start;
    bool told; // that writing failed
};

// Seconds since 1970.
static double wall_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// ---- CRC-32C (Castagnoli) ----

static uint32_t crc32c(const uint8_t *data, size_t size)
{
    static uint32_t table[256];
    if (!table[1]) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++)
                value = value >> 1 ^ (value & 1 ? 0x82F63B78u : 0);
            table[i] = value;
        }
    }
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; i++)
        crc = crc >> 8 ^ table[(crc ^ data[i]) & 255];
    return ~crc;
}

uint32_t pv_crc32c_masked(const void *data, size_t size)
{
    uint32_t crc = crc32c(data, size);
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

// ---- protobuf ----

static void put_bytes(Buffer *buffer, const void *data, size_t size)
{
    if (size > buffer->capacity - buffer->size) {
        size_t capacity = (buffer->size + size) * 2 + 64;
        uint8_t *bytes = realloc(buffer->bytes, capacity);
        if (!bytes)
            pv_fail(PV_MACHINE, "not enough memory for the log");
        buffer->bytes = bytes;
        buffer->capacity = capacity;
    }
    if (size > 0)
        memcpy(buffer->bytes + buffer->size, data, size);
    buffer->size += size;
}

static void put_varint(Buffer *buffer, uint64_t value)
{
    do {
        uint8_t byte = (uint8_t)((value & 127) | (value > 127 ? 128 : 0));
        put_bytes(buffer, &byte, 1);
        value >>= 7;
    } while (value > 0);
}

// Wire types: 0 varint, 1 eight bytes, 2 bytes with their length, 5 four bytes.
static void put_integer(Buffer *buffer, uint32_t field, int64_t value)
{
    put_varint(buffer, field << 3);
    put_varint(buffer, (uint64_t)value);
}

static void put_double(Buffer *buffer, uint32_t field, double value)
{
    put_varint(buffer, field << 3 | 1);
    put_bytes(buffer, &value, sizeof value);
}

static void put_float(Buffer *buffer, uint32_t field, float value)
{
    put_varint(buffer, field << 3 | 5);
    put_bytes(buffer, &value, sizeof value);
}

static void put_field(Buffer *buffer, uint32_t field, const void *data, size_t size)
{
    put_varint(buffer, field << 3 | 2);
    put_varint(buffer, size);
    put_bytes(buffer, data, size);
}

// ---- events ----

static void check_written(PvLog *log, FILE *file, const char *what)
{
    if (fflush(file) == 0 && !ferror(file))
        return;
    if (!log->told)
        pv_warn("the %s cannot be written: %m", what);
    log->told = true;
}

static void write_event(PvLog *log, const Buffer *event)
{
    uint8_t length[8];
    uint64_t size = event->size;
    memcpy(length, &size, sizeof length);
    uint32_t length_crc = pv_crc32c_masked(length, sizeof length);
    uint32_t crc = pv_crc32c_masked(event->bytes, event->size);
    fwrite(length, 1, sizeof length, log->events);
    fwrite(&length_crc, 1, sizeof length_crc, log->events);
    fwrite(event->bytes, 1, event->size, log->events);
    fwrite(&crc, 1, sizeof crc, log->events);
    check_written(log, log->events, "TensorBoard log");
}

static void write_summary(PvLog *log, int64_t step, const Buffer *summary)
{
    Buffer event = {0};
    put_double(&event, 1, wall_time());
    put_integer(&event, 2, step);
    put_field(&event, 5, summary->bytes, summary->size);
    write_event(log, &event);
    free(event.bytes);
}

void pv_log_image(PvLog *log, int64_t step, const char *name, const PvImage *image)
{
    PvError error = {0};
    uint8_t *png = NULL;
    size_t size = 0;
    if (!pv_image_encode(image, &png, &size, &error)) {
        pv_warn("%s", error.text);
        pv_error_free(&error);
        return;
    }
    Buffer picture = {0}, value = {0}, summary = {0};
    put_integer(&picture, 1, image->height);
    put_integer(&picture, 2, image->width);
    put_integer(&picture, 3, 3);
    put_field(&picture, 4, png, size);
    put_field(&value, 1, name, strlen(name));
    put_field(&value, 4, picture.bytes, picture.size);
    put_field(&summary, 1, value.bytes, value.size);
    write_summary(log, step, &summary);
    free(png);
    free(picture.bytes);
    free(value.bytes);
    free(summary.bytes);
}

// The run goes on with `step`: TensorBoard drops what older files say of it and of later steps.
static void write_restart(PvLog *log, int64_t step)
{
    Buffer session = {0}, event = {0};
    put_integer(&session, 1, 1);
    put_double(&event, 1, log->start);
    put_integer(&event, 2, step);
    put_field(&event, 7, session.bytes, session.size);
    write_event(log, &event);
    free(session.bytes);
    free(event.bytes);
}

// ---- rows ----

// Rewrites log.jsonl without what comes after `step`: rows of steps that will be done again, and a
// row that was cut off.
static bool cut_lines(const char *path, int64_t step, PvError *error)
{
    size_t size;
    if (!pv_path_exists(path))
        return true;
    char *text = pv_read_file(path, (size_t)1 << 32, &size, error);
    if (!text)
        return false;
    PvFile *file = pv_file_create(path, error);
    const char *line = text, *end;
    for (; file && step >= 0 && (end = strchr(line, '\n')); line = end + 1) {
        json_t *row = json_loadb(line, (size_t)(end - line), 0, NULL);
        json_t *at = json_object_get(row, "step");
        if (json_is_integer(at) && json_integer_value(at) <= step)
            pv_file_write(file, line, (size_t)(end - line) + 1);
        json_decref(row);
    }
    free(text);
    return file && pv_file_commit(file, error);
}

PvLog *pv_log_open(const char *folder, int64_t step, PvError *error)
{
    if (!pv_make_folder(folder, error))
        return NULL;
    PvLog *log = pv_alloc(sizeof *log);
    log->row = json_object();
    log->start = wall_time();
    char host[64] = "host", *lines = pv_join(folder, "log.jsonl");
    gethostname(host, sizeof host - 1);
    char *name = pv_printf("events.out.tfevents.%010lld.%s.%ld", (long long)log->start, host,
                           (long)getpid());
    char *events = pv_join(folder, name);
    bool fine = cut_lines(lines, step, error);
    if (fine && !(log->lines = fopen(lines, "ae")))
        fine = pv_error_errno(error, "cannot write %s", lines);
    if (fine && !(log->events = fopen(events, "we")))
        fine = pv_error_errno(error, "cannot write %s", events);
    if (fine) {
        Buffer event = {0};
        put_double(&event, 1, log->start);
        put_field(&event, 3, "brain.Event:2", 13);
        write_event(log, &event);
        free(event.bytes);
        if (step >= 0)
            write_restart(log, step + 1);
    } else {
        pv_log_close(log);
        log = NULL;
    }
    free(lines);
    free(name);
    free(events);
    return log;
}

void pv_log_number(PvLog *log, const char *name, double value)
{
    json_object_set_new(log->row, name, isfinite(value) ? json_real(value) : json_null());
}

void pv_log_row(PvLog *log, int64_t step)
{
    Buffer summary = {0};
    const char *name;
    json_t *number;
    json_t *line =
        json_pack("{s:I, s:f}", "step", (json_int_t)step, "time", wall_time() - log->start);
    json_object_foreach(log->row, name, number)
    {
        Buffer value = {0};
        float shown = json_is_real(number) ? (float)json_real_value(number) : NAN;
        put_field(&value, 1, name, strlen(name));
        put_float(&value, 2, shown);
        put_field(&summary, 1, value.bytes, value.size);
        free(value.bytes);
        json_object_set(line, name, number);
    }
    if (json_object_size(log->row) > 0)
        write_summary(log, step, &summary);
    free(summary.bytes);
    json_dumpf(line, log->lines, JSON_COMPACT | JSON_REAL_PRECISION(9));
    fputc('\n', log->lines);
    check_written(log, log->lines, "log");
    json_decref(line);
    json_object_clear(log->row);
}

void pv_log_close(PvLog *log)
{
    if (!log)
        return;
    if (log->lines)
        fclose(log->lines);
    if (log->events)
        fclose(log->events);
    json_decref(log->row);
    free(log);
}

bool pv_log_read(const char *path, const char *name, double **x, double **y, size_t *count,
                 PvError *error)
{
    size_t size, capacity_x = 0, capacity_y = 0;
    *x = *y = NULL;
    *count = 0;
    char *text = pv_read_file(path, (size_t)1 << 32, &size, error);
    if (!text)
        return false;
    const char *line = text, *end;
    for (; (end = strchr(line, '\n')); line = end + 1) {
        json_t *row = json_loadb(line, (size_t)(end - line), 0, NULL);
        json_t *step = json_object_get(row, "step"), *value = json_object_get(row, name);
        if (json_is_number(step) && json_is_number(value)) {
            *x = pv_grow(*x, &capacity_x, *count, sizeof **x);
            *y = pv_grow(*y, &capacity_y, *count, sizeof **y);
            (*x)[*count] = json_number_value(step);
            (*y)[(*count)++] = json_number_value(value);
        }
        json_decref(row);
    }
    free(text);
    return true;
}
