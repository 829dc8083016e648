/* A counter in C: what plugins/counter does, without the SDK for Rust.
 *
 * A command is a number in digits, the step to add; no digits at all are a step of 1. The response, and
 * the answer to any query, is the total in digits. Stored: under the key "total", a little-endian
 * uint64_t.
 */

#include "raftkv_plugin.h"

RAFTKV_PLUGIN("c-counter", "0.1.0");

/* The codes that commands fail with. */
enum { NO_NUMBER = 1, OVERFLOW = 2, UNREADABLE = 3 };

/* A uint64_t has at most 20 digits. */
enum { MAX_DIGITS = 20 };

static const char TOTAL[] = {'t', 'o', 't', 'a', 'l'};

#define FAIL(code, message) raftkv_fail(code, message, sizeof(message) - 1)

/* A command in memory. */
typedef struct {
    const unsigned char *bytes;
    uint32_t len;
} command_t;

/* Pulls the next command and returns 1, or 0 if there is none. */
static int next(command_t *command) {
    uint32_t cap = 1024;
    for (;;) {
        void *room = raftkv_region(cap);
        int64_t len = raftkv_next_command(room, cap);
        if (len < 0) {
            return 0;
        }
        if (len <= cap) {
            command->bytes = room;
            command->len = (uint32_t)len;
            return 1;
        }
        cap = (uint32_t)len;
    }
}

/* Reads the step. Returns 0 if it is no number, or none that fits into a uint64_t. */
static int parse(command_t command, uint64_t *step) {
    if (command.len == 0) {
        *step = 1;
        return 1;
    }
    uint64_t number = 0;
    for (uint32_t at = 0; at < command.len; at++) {
        unsigned digit = command.bytes[at] - (unsigned)'0';
        if (digit > 9 || number > (UINT64_MAX - digit) / 10) {
            return 0;
        }
        number = 10 * number + digit;
    }
    *step = number;
    return 1;
}

/* Reads the total. Returns 0, and has made the command fail, if somebody else wrote it. */
static int read_total(uint64_t *total) {
    uint64_t stored = 0;
    int64_t len = raftkv_get(TOTAL, sizeof TOTAL, &stored, sizeof stored);
    if (len != RAFTKV_NONE && len != sizeof stored) {
        FAIL(UNREADABLE, "the stored total has another length than 8 bytes");
        return 0;
    }
    *total = stored;
    return 1;
}

static void respond_number(uint64_t number) {
    char digits[MAX_DIGITS];
    uint32_t at = MAX_DIGITS;
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    raftkv_respond(digits + at, MAX_DIGITS - at);
}

static void add(command_t command) {
    uint64_t step, total;
    if (!parse(command, &step)) {
        FAIL(NO_NUMBER, "a command is a number from 0 to 2^64 - 1");
        return;
    }
    if (!read_total(&total)) {
        return;
    }
    if (__builtin_add_overflow(total, step, &total)) {
        FAIL(OVERFLOW, "the total would leave its range");
        return;
    }
    raftkv_put(TOTAL, sizeof TOTAL, &total, sizeof total);
    respond_number(total);
}

RAFTKV_EXPORT(apply) void apply(void) {
    command_t command;
    while (next(&command)) {
        add(command);
    }
}

RAFTKV_EXPORT(query) void query(void) {
    command_t request;
    uint64_t total;
    while (next(&request)) {
        if (read_total(&total)) {
            respond_number(total);
        }
    }
}
