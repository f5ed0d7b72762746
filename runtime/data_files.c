// What a data set holds: folders searched through, lists of paths. See data.h.
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data_parts.h"
#include "runtime/file.h"

enum { MAX_DEPTH = 16, MAX_LIST = 64 << 20 };

void pv_sources_add(SourceList *list, const char *name, const char *path)
{
    list->items = pv_grow(list->items, &list->capacity, list->count, sizeof *list->items);
    list->items[list->count++] =
        (Source){.name = pv_strdup(name), .path = path ? pv_strdup(path) : NULL};
}

void pv_sources_free(SourceList *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->items[i].name);
        free(list->items[i].path);
    }
    free(list->items);
    *list = (SourceList){0};
}

// Length of the first folder of a name; 0: it is in none.
static size_t class_length(const char *name)
{
    const char *slash = strchr(name, '/');
    return slash ? (size_t)(slash - name) : 0;
}

static int compare_classes(const void *a, const void *b)
{
    const char *x = (*(Source *const *)a)->name, *y = (*(Source *const *)b)->name;
    size_t n = class_length(x), m = class_length(y);
    int way = strncmp(x, y, n < m ? n : m);
    return way ? way : (n > m) - (n < m);
}

void pv_sources_label(SourceList *list)
{
    Source **order = pv_alloc(list->count * sizeof *order);
    for (size_t i = 0; i < list->count; i++)
        order[i] = &list->items[i];
    if (list->count > 1)
        qsort(order, list->count, sizeof *order, compare_classes);
    list->classes = 1;
    for (size_t i = 0; i < list->count; i++) {
        if (i > 0 && compare_classes(&order[i - 1], &order[i]) != 0)
            list->classes++;
        order[i]->label = list->classes - 1;
    }
    free(order);
}

// ---- folders ----

// Adds what is under root/name ("" : root itself). A folder with pictures is one video, and is not
// searched further.
static bool scan(const char *root, const char *name, int depth, SourceList *list, PvError *error)
{
    char *folder = *name ? pv_join(root, name) : pv_strdup(root);
    char **names = NULL;
    size_t count = 0;
    bool fine = pv_list_folder(folder, &names, &count, error), pictures = false;
    for (size_t i = 0; i < count && !pictures; i++)
        pictures = names[i][0] != '.' && pv_is_image_file(names[i]);
    if (fine && pictures)
        pv_sources_add(list, *name ? name : ".", folder);
    for (size_t i = 0; i < count && fine && !pictures; i++) {
        if (names[i][0] == '.')
            continue;
        char *path = pv_join(folder, names[i]),
             *inner = *name ? pv_join(name, names[i]) : pv_strdup(names[i]);
        if (pv_is_folder(path)) {
            if (depth < MAX_DEPTH)
                fine = scan(root, inner, depth + 1, list, error);
        } else if (pv_is_video_file(names[i])) {
            pv_sources_add(list, inner, path);
        }
        free(path);
        free(inner);
    }
    pv_names_free(names, count);
    free(folder);
    return fine;
}

// ---- lists ----

// Where an entry of a list lies: in the root or in its UCF-101 folder. malloc'ed, NULL: nowhere.
static char *locate(const char *root, const char *entry)
{
    static const char *const inside[] = {"", "UCF-101/", "videos/"};
    for (size_t i = 0; i < sizeof inside / sizeof inside[0]; i++) {
        char *name = pv_printf("%s%s", inside[i], entry);
        char *path = entry[0] == '/' ? pv_strdup(entry) : pv_join(root, name);
        free(name);
        if (pv_path_exists(path))
            return path;
        free(path);
    }
    return NULL;
}

// One line: a path, and maybe a number after a space (UCF-101's lists give the class).
static bool add_line(const char *root, char *line, SourceList *list)
{
    size_t length = strlen(line);
    while (length > 0 && isspace((unsigned char)line[length - 1]))
        line[--length] = 0;
    char *path = locate(root, line);
    char *space = strrchr(line, ' ');
    if (!path && space && space[1] && strspn(space + 1, "0123456789") == strlen(space + 1)) {
        *space = 0;
        path = locate(root, line);
    }
    if (!path)
        return false;
    pv_sources_add(list, line, path);
    free(path);
    return true;
}

static bool read_list(const char *root, const char *file, SourceList *list, PvError *error)
{
    size_t size, missing = 0;
    char *text = pv_read_file(file, MAX_LIST, &size, error);
    if (!text)
        return false;
    char *rest = text, *line, *first = NULL;
    while ((line = strsep(&rest, "\n"))) {
        if (!line[strspn(line, " \t\r")] || line[0] == '#')
            continue;
        if (!add_line(root, line, list) && missing++ == 0)
            first = line;
    }
    if (missing > 0) {
        pv_warn("%zu of %zu videos in %s are not there; the first is %s", missing,
                missing + list->count, file, first);
    }
    free(text);
    return true;
}

// ---- both ----

// A file of the data set that lists a split, malloc'ed; NULL: there is none.
static char *find_list(const char *root, const char *split)
{
    static const char *const folders[] = {"", "ucfTrainTestlist/",
                                          "UCF101TrainTestSplits-RecognitionTask/", "splits/",
                                          "../ucfTrainTestlist/"};
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        char *name = pv_printf("%s%slist01.txt", folders[i], split);
        char *path = pv_join(root, name);
        free(name);
        if (pv_path_exists(path))
            return path;
        free(path);
    }
    return NULL;
}

bool pv_sources_find(const PvDataOptions *options, SourceList *list, PvError *error)
{
    const char *root = options->path, *split = options->split ? options->split : "train";
    if (!pv_is_folder(root)) {
        if (!pv_path_exists(root))
            return pv_error(error, PV_WRONG, "%s does not exist", root);
        if (!pv_is_video_file(root)) {
            return pv_error(error, PV_WRONG,
                            "%s is neither a folder, nor a packed data set, nor a video", root);
        }
        pv_sources_add(list, pv_base_name(root), root);
        pv_sources_label(list);
        return true;
    }
    bool all = !strcmp(split, "all"), fine;
    if (!all && strcmp(split, "train") != 0 && strcmp(split, "test") != 0)
        return pv_error(error, PV_USAGE, "the split is train, test or all, not '%s'", split);
    char *file = options->list ? pv_strdup(options->list) : all ? NULL : find_list(root, split);
    if (file) {
        fine = read_list(root, file, list, error);
    } else {
        char *part = pv_join(root, split);
        fine = scan(!all && pv_is_folder(part) ? part : root, "", 0, list, error);
        free(part);
    }
    if (fine && list->count == 0)
        fine = pv_error(error, PV_WRONG, "%s holds no videos", file ? file : root);
    free(file);
    if (fine)
        pv_sources_label(list);
    return fine;
}
