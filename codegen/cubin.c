/* A reader of cubins: registers, stack, shared memory and a histogram of instruction classes.
 *
 * A cubin is an ELF file. Section .text.KERNEL holds 128-bit instructions whose low 12 bits are the
 * opcode (sm_80 to sm_90; the table was taken from ptxas 13.0's output); .nv.info holds attributes
 * of all kernels as (format, attribute, size, symbol, value), .nv.info.KERNEL those of one.
 * Everything is compared with the file's size before it is read: a cubin may come from a cache on
 * disk.
 */
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "codegen/cubin.h"

const char *const cubin_classes[CUBIN_CLASSES] = {
    "HMMA", "HGMMA", "LDSM", "STSM", "LDGSTS", "UTMALDG", "UTMASTG", "SYNCS", "LDG", "STG",
    "LDS",  "STS",   "LDL",  "STL",  "SHFL",   "BAR",     "MUFU",    "FFMA",  "ATOM",
    "LDG.128", "STG.128"}; // of LDG and STG, those of 16 bytes

static const struct {
    uint16_t opcode;
    const char *class_name;
} opcodes[] = {
    {0x23c, "HMMA"},  {0x9f0, "HGMMA"}, {0x5f0, "HGMMA"},  {0x1f0, "HGMMA"},   {0xdf0, "HGMMA"},
    {0x83b, "LDSM"},  {0x844, "STSM"},  {0xfae, "LDGSTS"}, {0x5b4, "UTMALDG"}, {0x3b5, "UTMASTG"},
    {0x5b2, "SYNCS"}, {0x9a7, "SYNCS"}, {0x5a7, "SYNCS"},  {0x981, "LDG"},     {0x986, "STG"},
    {0x984, "LDS"},   {0x988, "STS"},   {0x388, "STS"},    {0x983, "LDL"},     {0x387, "STL"},
    {0x987, "STL"},   {0x589, "SHFL"},  {0xf89, "SHFL"},   {0x389, "SHFL"},    {0x989, "SHFL"},
    {0xb1d, "BAR"},   {0x51d, "BAR"},   {0x31d, "BAR"},    {0x308, "MUFU"},    {0x223, "FFMA"},
    {0x423, "FFMA"},  {0x823, "FFMA"},  {0x9a8, "ATOM"},   {0x9a3, "ATOM"},    {0x98e, "ATOM"},
    {0x9a6, "ATOM"},  {0x38c, "ATOM"},  {0x38d, "ATOM"},
};

// Attributes of .nv.info and the formats that carry them.
enum { FORMAT_SHORT = 3, FORMAT_WORDS = 4, MAX_THREADS = 0x05, FRAME = 0x11, REGISTERS = 0x2f };

typedef struct File {
    const uint8_t *bytes;
    size_t size;
    Elf64_Ehdr header;
    const char *names; // of sections
    size_t names_size;
} File;

static bool inside(const File *file, uint64_t offset, uint64_t size)
{
    return offset <= file->size && size <= file->size - offset;
}

static bool section_at(const File *file, int i, Elf64_Shdr *section)
{
    uint64_t at = file->header.e_shoff + (uint64_t)i * sizeof *section;
    if (i < 0 || i >= file->header.e_shnum || !inside(file, at, sizeof *section))
        return false;
    memcpy(section, file->bytes + at, sizeof *section);
    return section->sh_type == SHT_NOBITS || inside(file, section->sh_offset, section->sh_size);
}

// A string of a table that ends within the file; "" where it does not.
static const char *string_at(const char *table, size_t size, uint64_t offset)
{
    return offset < size && memchr(table + offset, 0, size - offset) ? table + offset : "";
}

static bool find_section(const File *file, const char *name, Elf64_Shdr *section)
{
    for (int i = 1; i < file->header.e_shnum; i++)
        if (section_at(file, i, section) &&
            strcmp(string_at(file->names, file->names_size, section->sh_name), name) == 0)
            return true;
    return false;
}

static bool open_file(File *file, const void *cubin, size_t size)
{
    Elf64_Shdr names;
    *file = (File){.bytes = cubin, .size = size};
    if (size < sizeof file->header || memcmp(cubin, ELFMAG, SELFMAG) != 0)
        return false;
    memcpy(&file->header, cubin, sizeof file->header);
    if (file->header.e_machine != EM_CUDA || !section_at(file, file->header.e_shstrndx, &names) ||
        names.sh_type == SHT_NOBITS)
        return false;
    file->names = (const char *)file->bytes + names.sh_offset;
    file->names_size = names.sh_size;
    return true;
}

static bool symbol_is(const File *file, uint32_t index, const char *name)
{
    Elf64_Shdr symbols, strings;
    Elf64_Sym symbol;
    if (!find_section(file, ".symtab", &symbols) || index >= symbols.sh_size / sizeof symbol ||
        !section_at(file, (int)symbols.sh_link, &strings))
        return false;
    memcpy(&symbol, file->bytes + symbols.sh_offset + index * sizeof symbol, sizeof symbol);
    const char *table = (const char *)file->bytes + strings.sh_offset;
    return strcmp(string_at(table, strings.sh_size, symbol.st_name), name) == 0;
}

// Takes one attribute's words; the first word of an attribute of .nv.info is the kernel's symbol.
static void take_attribute(const File *file, CubinKernel *kernel, bool of_all, int attribute,
                           const uint32_t *words, int count)
{
    if (of_all && count >= 2 && (attribute == REGISTERS || attribute == FRAME) &&
        symbol_is(file, words[0], kernel->name))
        *(attribute == REGISTERS ? &kernel->registers : &kernel->stack) = (int)words[1];
    if (!of_all && count >= 3 && attribute == MAX_THREADS)
        kernel->max_threads = (int)(words[0] * words[1] * words[2]);
}

static void read_info(const File *file, const char *section_name, bool of_all, CubinKernel *kernel)
{
    Elf64_Shdr section;
    if (!find_section(file, section_name, &section) || section.sh_type == SHT_NOBITS)
        return;
    const uint8_t *at = file->bytes + section.sh_offset, *end = at + section.sh_size;
    while (end - at >= 4) {
        uint16_t size;
        memcpy(&size, at + 2, sizeof size);
        int format = at[0], attribute = at[1];
        at += 4;
        if (format != FORMAT_WORDS)
            continue; // the value stood in the size
        if (end - at < size)
            return;
        uint32_t words[3] = {0};
        memcpy(words, at, size < sizeof words ? size : sizeof words);
        take_attribute(file, kernel, of_all, attribute, words, size / 4);
        at += size;
    }
}

static int class_index(const char *name)
{
    for (int i = 0; i < CUBIN_CLASSES && cubin_classes[i]; i++)
        if (strcmp(cubin_classes[i], name) == 0)
            return i;
    return -1;
}

// Whether a load or store moves 16 bytes a thread: bits 73 to 75.
static bool moves_16_bytes(const uint8_t *instruction)
{
    return (instruction[9] >> 1 & 7) == 6;
}

static void count_instructions(const uint8_t *code, size_t bytes, CubinKernel *kernel)
{
    kernel->code_bytes = bytes;
    for (size_t at = 0; at + 16 <= bytes; at += 16) {
        int opcode = code[at] | (code[at + 1] & 0xf) << 8;
        for (size_t i = 0; i < sizeof opcodes / sizeof *opcodes; i++)
            if (opcodes[i].opcode == opcode)
                kernel->count[class_index(opcodes[i].class_name)]++;
        if ((opcode == 0x981 || opcode == 0x986) && moves_16_bytes(code + at))
            kernel->count[class_index(opcode == 0x981 ? "LDG.128" : "STG.128")]++;
    }
}

static void read_kernel(const File *file, const Elf64_Shdr *text, const char *name,
                        CubinKernel *kernel)
{
    char section_name[CUBIN_NAME + 32];
    Elf64_Shdr shared;
    *kernel = (CubinKernel){.registers = -1, .stack = -1};
    snprintf(kernel->name, sizeof kernel->name, "%s", name);
    read_info(file, ".nv.info", true, kernel);
    snprintf(section_name, sizeof section_name, ".nv.info.%s", kernel->name);
    read_info(file, section_name, false, kernel);
    snprintf(section_name, sizeof section_name, ".nv.shared.%s", kernel->name);
    if (find_section(file, section_name, &shared))
        kernel->static_shared = (int)shared.sh_size;
    count_instructions(file->bytes + text->sh_offset, text->sh_size, kernel);
}

int cubin_read(const void *cubin, size_t bytes, int *arch, CubinKernel *kernels, int most)
{
    File file;
    int count = 0;
    if (!open_file(&file, cubin, bytes))
        return -1;
    // CUDA 13 (ABI 8) has the architecture in bits 8 to 15 of the flags, older ones in bits 0 to 7
    int shift = file.header.e_ident[EI_ABIVERSION] >= 8 ? 8 : 0;
    *arch = (int)(file.header.e_flags >> shift & 0xff);
    for (int i = 1; i < file.header.e_shnum; i++) {
        Elf64_Shdr section;
        if (!section_at(&file, i, &section) || section.sh_type == SHT_NOBITS)
            continue;
        const char *name = string_at(file.names, file.names_size, section.sh_name);
        if (strncmp(name, ".text.", 6) != 0)
            continue;
        if (count < most)
            read_kernel(&file, &section, name + 6, &kernels[count]);
        count++;
    }
    return count;
}

int cubin_count(const CubinKernel *kernel, const char *class_name)
{
    int i = class_index(class_name);
    return i < 0 ? 0 : kernel->count[i];
}

bool cubin_feeds_mma(const CubinKernel *kernel)
{
    return 2 * cubin_count(kernel, "HMMA") >= 5 * cubin_count(kernel, "LDSM");
}

int cubin_occupancy(const CubinKernel *kernel, int arch, int threads, int dynamic_shared,
                    const char **limit)
{
    bool data_center = arch == 80 || arch >= 90;
    int warps = (threads + 31) / 32, shared_of_sm = arch >= 90   ? 233472
                                                    : arch == 80 ? 167936
                                                                 : 102400;
    int registers_of_warp = (kernel->registers * 32 + 255) / 256 * 256; // allocated by 256
    // on sm_90 the reserve of 1 KB is in the static size already where that is not zero
    int reserve = arch >= 90 && kernel->static_shared >= 1024 ? 0 : 1024;
    int shared = (kernel->static_shared + dynamic_shared + reserve + 127) / 128 * 128;
    if (warps == 0 || registers_of_warp <= 0) {
        *limit = "unknown";
        return 0;
    }
    if (arch == 80 && shared > 102400) {
        *limit = "shared memory of sm_86";
        return 0;
    }
    const struct {
        int blocks;
        const char *name;
    } limits[] = {{65536 / 4 / registers_of_warp * 4 / warps, "registers"},
                  {shared_of_sm / shared, "shared memory"},
                  {(data_center ? 64 : 48) / warps, "warps"},
                  {data_center ? 32 : 16, "blocks"}};
    int best = 0;
    for (int i = 1; i < 4; i++)
        if (limits[i].blocks < limits[best].blocks)
            best = i;
    *limit = limits[best].name;
    return limits[best].blocks;
}
