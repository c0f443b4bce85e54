/**
 * `import { raspberryPi4 } from 'bistable/hil/places'`: how a bench is written down, in the file that `HIL_PLACES` names. Apart from
 * `bistable/hil`, because places are read before there are tests, where vitest cannot be imported.
 *
 * @packageDocumentation
 */

export { apcOutlet, poePort } from '../drivers/power-snmp.ts'
export { type Bench, beagleBone, raspberryPi4, raspberryPi5, x86Box } from './boards.ts'
export type { BoardPlace, Feature } from './index.ts'
