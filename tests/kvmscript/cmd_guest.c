/* A small assembler for guests of scripts: 32-bit flat code, one mnemonic a step, steps between ';'. */
#include <stdlib.h>
#include <string.h>

#include "player.h"

#define MAX_CODE 4096

struct out {
    unsigned char *at;
    size_t n, room;
};

static void put(struct out *o, const unsigned char *bytes, size_t n)
{
    if (o->n <= o->room && n <= o->room - o->n) {
        memcpy(o->at + o->n, bytes, n);
    }
    o->n += n;
}

static void put_imm(struct out *o, uint64_t v, unsigned width)
{
    unsigned char b[8];

    memcpy(b, &v, 8);
    put(o, b, width);
}

/* Opcode bytes, then up to three immediates of the widths given. */
static const struct {
    const char *name;
    unsigned char op[6], n;
    unsigned char width[2];
} plain[] = {
    {"st8", {0xa2}, 1, {4}},          {"st16", {0x66, 0xa3}, 2, {4}},    {"st32", {0xa3}, 1, {4}},
    {"ld8", {0xa0}, 1, {4}},          {"ld16", {0x66, 0xa1}, 2, {4}},    {"ld32", {0xa1}, 1, {4}},
    {"al", {0xb0}, 1, {1}},           {"eax", {0xb8}, 1, {4}},           {"ecx", {0xb9}, 1, {4}},
    {"edx", {0xba}, 1, {4}},          {"ebx", {0xbb}, 1, {4}},           {"esp", {0xbc}, 1, {4}},
    {"esi", {0xbe}, 1, {4}},          {"edi", {0xbf}, 1, {4}},           {"out8", {0xe6}, 1, {1}},
    {"out16", {0x66, 0xe7}, 2, {1}},  {"out32", {0xe7}, 1, {1}},         {"in8", {0xe4}, 1, {1}},
    {"in16", {0x66, 0xe5}, 2, {1}},   {"in32", {0xe5}, 1, {1}},          {"outdx8", {0xee}, 1, {0}},
    {"outdx16", {0x66, 0xef}, 2, {0}}, {"outdx32", {0xef}, 1, {0}},      {"indx8", {0xec}, 1, {0}},
    {"indx16", {0x66, 0xed}, 2, {0}}, {"indx32", {0xed}, 1, {0}},        {"inc32", {0xff, 0x05}, 2, {4}},
    {"inc8", {0xfe, 0x05}, 2, {4}},   {"dec32", {0xff, 0x0d}, 2, {4}},   {"add32", {0x01, 0x05}, 2, {4}},
    {"xchg32", {0x87, 0x05}, 2, {4}}, {"lockinc", {0xf0, 0xff, 0x05}, 3, {4}},
    {"movi8", {0xc6, 0x05}, 2, {4, 1}}, {"movi32", {0xc7, 0x05}, 2, {4, 4}}, {"cmpi32", {0x81, 0x3d}, 2, {4, 4}},
    {"push", {0x50}, 1, {0}},         {"pop", {0x58}, 1, {0}},           {"pushm", {0xff, 0x35}, 2, {4}},
    {"hlt", {0xf4}, 1, {0}},          {"nop", {0x90}, 1, {0}},           {"cli", {0xfa}, 1, {0}},
    {"sti", {0xfb}, 1, {0}},          {"ud2", {0x0f, 0x0b}, 2, {0}},     {"int", {0xcd}, 1, {1}},
    {"int3", {0xcc}, 1, {0}},         {"iret", {0xcf}, 1, {0}},          {"cpuid", {0x0f, 0xa2}, 2, {0}},
    {"rdmsr", {0x0f, 0x32}, 2, {0}},  {"wrmsr", {0x0f, 0x30}, 2, {0}},   {"vmcall", {0x0f, 0x01, 0xc1}, 3, {0}},
    {"spin", {0xeb, 0xfe}, 2, {0}},   {"pause", {0xf3, 0x90}, 2, {0}},   {"rdtsc", {0x0f, 0x31}, 2, {0}},
    {"clrcr0", {0x0f, 0x20, 0xc0}, 3, {0}}, {"rstos8", {0xf3, 0xaa}, 2, {0}}, {"rstos32", {0xf3, 0xab}, 2, {0}},
    {"rmovs8", {0xf3, 0xa4}, 2, {0}}, {"rmovs32", {0xf3, 0xa5}, 2, {0}}, {"movs32", {0xa5}, 1, {0}},
    {"rout8", {0xf3, 0x6e}, 2, {0}},  {"rout32", {0xf3, 0x6f}, 2, {0}},  {"rin8", {0xf3, 0x6c}, 2, {0}},
    {"rin32", {0xf3, 0x6d}, 2, {0}},  {"stos32", {0xab}, 1, {0}},        {"lods32", {0xad}, 1, {0}},
    {"jmp", {0xe9}, 1, {4}},          {"div", {0xf7, 0xf1}, 2, {0}},     {"lidt", {0x0f, 0x01, 0x1d}, 3, {4}},
    {"lgdt", {0x0f, 0x01, 0x15}, 3, {4}}, {"invlpg", {0x0f, 0x01, 0x3d}, 3, {4}}, {"wbinvd", {0x0f, 0x09}, 2, {0}},
    {"eax2cr3", {0x0f, 0x22, 0xd8}, 3, {0}}, {"cr22eax", {0x0f, 0x20, 0xd0}, 3, {0}},
    {"eax2cr0", {0x0f, 0x22, 0xc0}, 3, {0}}, {"cr02eax", {0x0f, 0x20, 0xc0}, 3, {0}},
    {"eax2cr4", {0x0f, 0x22, 0xe0}, 3, {0}}, {"cr42eax", {0x0f, 0x20, 0xe0}, 3, {0}},
    {"eax2dr7", {0x0f, 0x23, 0xf8}, 3, {0}}, {"eax2dr0", {0x0f, 0x23, 0xc0}, 3, {0}},
    {"mfence", {0x0f, 0xae, 0xf0}, 3, {0}}, {"pushf", {0x9c}, 1, {0}}, {"popf", {0x9d}, 1, {0}},
};

/* pages ADDR COUNT: a store of eax to the start of each page; eax is left alone. */
static void put_pages(struct out *o, uint64_t addr, uint64_t count)
{
    static const unsigned char loop[] = {0x89, 0x07, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x49, 0x75, 0xf5};

    put_imm(o, 0xbf, 1);
    put_imm(o, addr, 4);
    put_imm(o, 0xb9, 1);
    put_imm(o, count, 4);
    put(o, loop, sizeof(loop));
}

static bool put_step(struct player *p, struct out *o, unsigned first, unsigned end)
{
    uint64_t v[2] = {player_arg(p, first + 1, 0), player_arg(p, first + 2, 0)};
    const char *name = p->word[first];

    if (strcmp(name, "pages") == 0 && end - first == 3) {
        put_pages(o, v[0], v[1]);
        return true;
    }
    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
        if (strcmp(plain[i].name, name) == 0) {
            put(o, plain[i].op, plain[i].n);
            put_imm(o, v[0], plain[i].width[0]);
            put_imm(o, v[1], plain[i].width[1]);
            return end - first == 1u + (plain[i].width[0] > 0) + (plain[i].width[1] > 0);
        }
    }
    return false;
}

/* guest GPA STEP [ARG...] ; STEP ...: 32-bit code at GPA. */
static int cmd_guest(struct player *p)
{
    unsigned char code[MAX_CODE], *to;
    struct out o = {code, 0, sizeof(code)};

    for (unsigned first = 2, end; first < p->nr_words; first = end + 1) {
        for (end = first; end < p->nr_words && strcmp(p->word[end], ";") != 0; end++) {
        }
        if (end == first || !put_step(p, &o, first, end)) {
            fprintf(stderr, "line %d: no guest step '%s'\n", p->line, first < p->nr_words ? p->word[first] : "");
            return 2;
        }
    }
    to = o.n <= sizeof(code) ? player_gpa(p, player_arg(p, 1, 0), o.n) : NULL;
    if (!to) {
        return 2;
    }
    memcpy(to, code, o.n);
    return 0;
}

const struct player_command player_guest_commands[] = {{"guest", cmd_guest}, {NULL, NULL}};
