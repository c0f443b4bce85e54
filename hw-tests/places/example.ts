import { apcOutlet } from '../drivers/power-snmp.ts'
import { raspberryPi4, x86Box } from './boards.ts'
import type { BoardPlace } from './index.ts'

// How a bench is written down. Copy it to hw-tests/places/local.ts, or anywhere and name it in HIL_PLACES.
export const PLACES = {
  'rpi4-1': raspberryPi4({
    console: '/dev/serial/by-id/usb-FTDI_TTL232R-3V3_FT9ABCDE-if00-port0',
    power: { driver: 'http', speaks: 'tasmota', address: 'http://plug-3.lab' },
    storage: {
      driver: 'usbsdmux',
      mux: '/dev/usb-sd-mux/id-000000001234',
      device: '/dev/disk/by-id/usb-LinuxAut_sdmux_HS-SD_MMC_000000001234-0:0',
    },
    host: '192.168.7.1',
  }),
  'pc-1': x86Box({
    console: '/dev/ttyS0',
    power: { driver: 'snmp', host: 'pdu.lab', community: 'private', ...apcOutlet(4) },
    host: '192.168.7.1',
  }),
} satisfies Readonly<Record<string, BoardPlace>>
