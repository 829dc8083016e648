/* RaftKV plugins in C: the plugin ABI, version 1, as declarations for clang.
 *
 * What the functions do, what ends a command, and what must not make a difference to a result, is in
 * docs/plugin-abi.md; here is only the shape. All integers are little-endian, as WebAssembly is.
 *
 * A plugin includes this header in its files, says RAFTKV_PLUGIN("name", "1.0.0") in one of them, and
 * defines
 *
 *     RAFTKV_EXPORT(apply) void apply(void) { ... }
 *     RAFTKV_EXPORT(query) void query(void) { ... }
 *
 * and, if it carries over what another version has stored,
 *
 *     RAFTKV_EXPORT(migrate) void migrate(void) { ... }
 *
 * and is built by
 *
 *     clang --target=wasm32 -O2 -ffreestanding -nostdlib -Wl,--no-entry -Wl,-z,stack-size=65536 \
 *         -Wl,--stack-first -o plugin.wasm plugin.c
 *
 * For any other target the functions are ordinary ones, which a test can define.
 */

#ifndef RAFTKV_PLUGIN_H
#define RAFTKV_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define RAFTKV_STATIC_ASSERT static_assert
#else
#define RAFTKV_STATIC_ASSERT _Static_assert
#endif

#define RAFTKV_ABI_VERSION "1"

#ifdef __wasm__
RAFTKV_STATIC_ASSERT(sizeof(void *) == 4, "plugins are built for wasm32");
#define RAFTKV_IMPORT(name) __attribute__((import_module("raftkv_v1"), import_name(#name)))
#define RAFTKV_EXPORT(name) __attribute__((export_name(#name)))
/* The custom section `raftkv`, without which the host refuses the module. `name` has 1 to 64 characters
 * of a-z, 0-9, - and _; `version` is a semantic version of at most 64 characters. Both are literals. */
#define RAFTKV_PLUGIN(name, version)                                                          \
    __asm__(".section .custom_section.raftkv,\"\",@\n"                                        \
            ".ascii \"name=" name "\\nversion=" version "\\nabi=" RAFTKV_ABI_VERSION "\\n\"\n" \
            ".text\n")
#else
#define RAFTKV_IMPORT(name)
#define RAFTKV_EXPORT(name)
#define RAFTKV_PLUGIN(name, version) \
    RAFTKV_STATIC_ASSERT(sizeof(name) > 1 && sizeof(name) <= 65, "the name has 1 to 64 characters")
#endif

/* What raftkv_next_command and raftkv_get give if there is nothing. */
#define RAFTKV_NONE INT64_C(-1)
/* The length that raftkv_get_many gives for a key without a value. */
#define RAFTKV_ABSENT UINT32_C(0xFFFFFFFF)
/* end_len of a scan without an upper bound. */
#define RAFTKV_NO_END INT32_C(-1)
/* Flag of raftkv_scan_open: from the last row to the first. */
#define RAFTKV_REVERSE UINT32_C(1)

/* What raftkv_exchange writes to place: raftkv_context_t as far as position. */
#define RAFTKV_PLACE_LEN UINT32_C(24)

/* Beyond these sizes, in bytes, and that number of scans, a call is a `bad call`. */
#define RAFTKV_MAX_KEY_LEN UINT32_C(65567)
#define RAFTKV_MAX_VALUE_LEN (UINT32_C(9) * 1024 * 1024)
#define RAFTKV_MAX_RESPONSE_LEN (UINT32_C(16) * 1024 * 1024)
#define RAFTKV_MAX_OPEN_SCANS 16

/* How much a line of the log matters. */
#define RAFTKV_LOG_ERROR UINT32_C(0)
#define RAFTKV_LOG_WARN UINT32_C(1)
#define RAFTKV_LOG_INFO UINT32_C(2)
#define RAFTKV_LOG_DEBUG UINT32_C(3)

/* What the log says about a command, the same on every replica. */
typedef struct raftkv_context {
    uint64_t log_index; /* index of the entry; queries: of the last one applied */
    uint64_t time_ms;   /* replicated time, milliseconds since 1970-01-01 UTC; never goes back */
    uint32_t slot;      /* whose keys the command sees */
    uint32_t position;  /* of the command in its entry, from 0 */
    uint64_t reserved;  /* 0 */
    uint8_t seed[32];   /* random; different for every command */
} raftkv_context_t;

RAFTKV_STATIC_ASSERT(offsetof(raftkv_context_t, log_index) == 0, "as in the ABI");
RAFTKV_STATIC_ASSERT(offsetof(raftkv_context_t, time_ms) == 8, "as in the ABI");
RAFTKV_STATIC_ASSERT(offsetof(raftkv_context_t, slot) == 16, "as in the ABI");
RAFTKV_STATIC_ASSERT(offsetof(raftkv_context_t, position) == 20, "as in the ABI");
RAFTKV_STATIC_ASSERT(offsetof(raftkv_context_t, reserved) == 24, "as in the ABI");
RAFTKV_STATIC_ASSERT(offsetof(raftkv_context_t, seed) == 32, "as in the ABI");
RAFTKV_STATIC_ASSERT(sizeof(raftkv_context_t) == 64, "as in the ABI");

/* What stands before each row that raftkv_scan_next gives, at no particular alignment: key and value
 * follow. */
typedef struct raftkv_row {
    uint32_t key_len;
    uint32_t value_len;
} raftkv_row_t;

RAFTKV_STATIC_ASSERT(sizeof(raftkv_row_t) == 8, "as in the ABI");

/* A size result n: the data has n bytes; if n <= cap they were written to buf, else nothing was, and
 * the call can be repeated with a buffer of n bytes. */

/* Ends the running command and gives the next one: a size, or RAFTKV_NONE when there are no more. A
 * command that does not fit has not begun. */
RAFTKV_IMPORT(next_command) int64_t raftkv_next_command(void *buf, uint32_t cap);

/* raftkv_respond, unless response_len is 0, and raftkv_next_command in one call. If place is not NULL,
 * the first RAFTKV_PLACE_LEN bytes of a raftkv_context_t are written there. When the command does not
 * fit, the response has been taken: the next call comes without one. */
RAFTKV_IMPORT(exchange)
int64_t raftkv_exchange(const void *response, uint32_t response_len, void *buf, uint32_t cap,
                        void *place);

/* The value of a key: a size, or RAFTKV_NONE. */
RAFTKV_IMPORT(get)
int64_t raftkv_get(const void *key, uint32_t key_len, void *buf, uint32_t cap);

/* The values of many keys. keys: for each a uint32_t length and its bytes. Gives the size of the whole:
 * for each key a uint32_t length or RAFTKV_ABSENT, and the value's bytes. */
RAFTKV_IMPORT(get_many)
int64_t raftkv_get_many(const void *keys, uint32_t keys_len, void *buf, uint32_t cap);

/* Sets a key. Not in queries. */
RAFTKV_IMPORT(put)
void raftkv_put(const void *key, uint32_t key_len, const void *value, uint32_t value_len);

/* Removes a key; nothing happens if it has no value. Not in queries. */
RAFTKV_IMPORT(delete) void raftkv_delete(const void *key, uint32_t key_len);

/* Opens a scan over start <= key < end, in byte order, and gives its handle. end_len may be
 * RAFTKV_NO_END, flags RAFTKV_REVERSE, else 0. */
RAFTKV_IMPORT(scan_open)
int32_t raftkv_scan_open(const void *start, uint32_t start_len, const void *end, int32_t end_len,
                         uint32_t flags);

/* As many whole rows as fit, each after a raftkv_row_t: the bytes written, 0 at the end, or the size
 * n > cap that the next row needs. */
RAFTKV_IMPORT(scan_next) int64_t raftkv_scan_next(int32_t handle, void *buf, uint32_t cap);

/* Frees the handle. */
RAFTKV_IMPORT(scan_close) void raftkv_scan_close(int32_t handle);

/* The command's response. The last call counts. */
RAFTKV_IMPORT(respond) void raftkv_respond(const void *bytes, uint32_t len);

/* The command fails with a code of the plugin's own and a message, which is UTF-8; its writes are
 * dropped. It goes on running until the next command is asked for. */
RAFTKV_IMPORT(fail) void raftkv_fail(uint32_t code, const char *message, uint32_t len);

/* Writes a raftkv_context_t; cap is its size. Gives 64. */
RAFTKV_IMPORT(context) int64_t raftkv_context(raftkv_context_t *buf, uint32_t cap);

/* A line for the log of the node, no part of the result. */
RAFTKV_IMPORT(log) void raftkv_log(uint32_t level, const char *message, uint32_t len);

/* Ends the command, and this instance, with the text of a panic. */
RAFTKV_IMPORT(abort) __attribute__((noreturn)) void raftkv_abort(const char *message, uint32_t len);

/* Memory behind the module's own data, of at least len bytes: one region, the same at every call, which
 * grows but does not move. Enough for a plugin that reads one command at a time. */
#ifdef __wasm__
static inline void *raftkv_region(uint32_t len) {
    extern unsigned char __heap_base; /* set by wasm-ld */
    const uint32_t page = 65536;
    uint64_t end = (uint64_t)(uintptr_t)&__heap_base + len;
    uint64_t have = (uint64_t)__builtin_wasm_memory_size(0) * page;
    if (end > have) {
        __builtin_wasm_memory_grow(0, (uint32_t)((end - have + page - 1) / page));
    }
    return &__heap_base;
}
#else
void *raftkv_region(uint32_t len);
#endif

#ifdef __cplusplus
}
#endif

#endif
