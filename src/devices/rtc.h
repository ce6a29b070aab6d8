/* The clock and CMOS memory at ports 0x70 and 0x71. */
#ifndef STRATA_DEVICES_RTC_H
#define STRATA_DEVICES_RTC_H

#include "devices/board.h"

struct devices_rtc;

/* below_4g, above_4g: RAM sizes that the CMOS reports. start: UTC seconds at the guest's clock zero. */
int devices_rtc_new(struct devices_rtc **out, const struct devices_board *board, uint64_t below_4g,
                   uint64_t above_4g, int64_t start, struct base_error *err) must_check;
void devices_rtc_free(struct devices_rtc *r);

/* The time that board->rtc_timer() was told has come. Lock: the device lock. */
void devices_rtc_expire(struct devices_rtc *r);

#endif
