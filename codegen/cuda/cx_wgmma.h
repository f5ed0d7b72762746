/* wgmma m64n{64,128,256}k16 for NVRTC: d[64, n] f32 += a[64, 16] b[n, 16]', both in shared memory.
 *
 * cx_wgmmaN(half, d, a, b, keep, a_mn, b_mn): half is 1 for operands in bf16, 2 for f16; d is the
 * thread's n / 2 sums, a and b are descriptors, keep 0 overwrites d, a_mn and b_mn are literals, 1
 * for an MN-major operand. The instruction names every register, so the operand lists are spelt by
 * macros: CX_TEXT10(t) is "%t0,...,%t9".
 */
#define CX_TEXT10(t)                                                                               \
    "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define CX_TEXT30  CX_TEXT10() CX_TEXT10(1) CX_TEXT10(2)
#define CX_TEXT60  CX_TEXT30 CX_TEXT10(3) CX_TEXT10(4) CX_TEXT10(5)
#define CX_TEXT90  CX_TEXT60 CX_TEXT10(6) CX_TEXT10(7) CX_TEXT10(8)
#define CX_TEXT120 CX_TEXT90 CX_TEXT10(9) CX_TEXT10(10) CX_TEXT10(11)
#define CX_SUMS8(i)                                                                                \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define CX_SUMS32(i) CX_SUMS8(i), CX_SUMS8(i + 8), CX_SUMS8(i + 16), CX_SUMS8(i + 24)

// The instruction with these operand types; sums: text of the registers of d; the numbers of the
// operands behind them.
#define CX_WGMMA_TEXT(shape, types, sums, a, b, keep, a_mn, b_mn)                                  \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %" #keep ", 0;\n"                                            \
    "wgmma.mma_async.sync.aligned." shape ".f32." types " {" sums "}, %" #a ", %" #b               \
    ", p, 1, 1, %" #a_mn ", %" #b_mn ";\n}\n"
#define CX_WGMMA_INPUTS(a, b, keep, a_mn, b_mn) "l"(a), "l"(b), "r"(keep), "n"(a_mn), "n"(b_mn)
#define CX_WGMMA64_TEXT(types)                                                                     \
    CX_WGMMA_TEXT("m64n64k16", types, CX_TEXT30 "%30,%31", 32, 33, 34, 35, 36)
#define CX_WGMMA128_TEXT(types)                                                                    \
    CX_WGMMA_TEXT("m64n128k16", types, CX_TEXT60 "%60,%61,%62,%63", 64, 65, 66, 67, 68)
#define CX_WGMMA256_TEXT(types)                                                                    \
    CX_WGMMA_TEXT("m64n256k16", types, CX_TEXT120 "%120,%121,%122,%123,%124,%125,%126,%127", 128,  \
                  129, 130, 131, 132)

template <int half, int a_mn, int b_mn>
CX_FN void cx_wgmma64_body(float *d, u64 a, u64 b, int keep)
{
    if (half == 2)
        asm volatile(CX_WGMMA64_TEXT("f16.f16")
                     : CX_SUMS32(0)
                     : CX_WGMMA_INPUTS(a, b, keep, a_mn, b_mn));
    else
        asm volatile(CX_WGMMA64_TEXT("bf16.bf16")
                     : CX_SUMS32(0)
                     : CX_WGMMA_INPUTS(a, b, keep, a_mn, b_mn));
}

template <int half, int a_mn, int b_mn>
CX_FN void cx_wgmma128_body(float *d, u64 a, u64 b, int keep)
{
    if (half == 2)
        asm volatile(CX_WGMMA128_TEXT("f16.f16")
                     : CX_SUMS32(0), CX_SUMS32(32)
                     : CX_WGMMA_INPUTS(a, b, keep, a_mn, b_mn));
    else
        asm volatile(CX_WGMMA128_TEXT("bf16.bf16")
                     : CX_SUMS32(0), CX_SUMS32(32)
                     : CX_WGMMA_INPUTS(a, b, keep, a_mn, b_mn));
}

template <int half, int a_mn, int b_mn>
CX_FN void cx_wgmma256_body(float *d, u64 a, u64 b, int keep)
{
    if (half == 2)
        asm volatile(CX_WGMMA256_TEXT("f16.f16")
                     : CX_SUMS32(0), CX_SUMS32(32), CX_SUMS32(64), CX_SUMS32(96)
                     : CX_WGMMA_INPUTS(a, b, keep, a_mn, b_mn));
    else
        asm volatile(CX_WGMMA256_TEXT("bf16.bf16")
                     : CX_SUMS32(0), CX_SUMS32(32), CX_SUMS32(64), CX_SUMS32(96)
                     : CX_WGMMA_INPUTS(a, b, keep, a_mn, b_mn));
}

#define cx_wgmma64(half, d, a, b, keep, a_mn, b_mn)                                                \
    cx_wgmma64_body<half, a_mn, b_mn>((d), (a), (b), (keep))
#define cx_wgmma128(half, d, a, b, keep, a_mn, b_mn)                                               \
    cx_wgmma128_body<half, a_mn, b_mn>((d), (a), (b), (keep))
#define cx_wgmma256(half, d, a, b, keep, a_mn, b_mn)                                               \
    cx_wgmma256_body<half, a_mn, b_mn>((d), (a), (b), (keep))
