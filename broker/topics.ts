import { isSafePath } from '../bundle/freshness.ts'

/**
 * A publish folder on a broker: which topic stands for which file, and where devices and publisher talk. Both sides use
 * this and nothing else; docs/mqtt.md is the same for people. No name from outside becomes part of a topic before it has
 * passed these rules, so none can hold a wildcard or a level of its own.
 */

/** Folders of a publish folder that exist on a broker. */
export const FOLDERS = ['channels', 'assignments', 'roots', 'bundles', 'deltas'] as const
export type Folder = (typeof FOLDERS)[number]

/** Small signed files; they are retained messages as they are. */
export const RETAINED_FOLDERS: readonly Folder[] = ['channels', 'assignments', 'roots']
/** Bytes of a file that may be a retained message: as much as devices read of any such file. */
export const MAX_RETAINED_BYTES = 16 * 1024

/** Data bytes of a piece; the last one of a bundle may be shorter. */
export const PIECE_BYTES = 32 * 1024
/** Pieces that share a topic: brokers limit subscriptions more than messages. */
export const SEGMENT_PIECES = 8

/** A device's name in topics: the id that assignments call it by. */
export const isDeviceName = (text: string): boolean => /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(text)

export interface MqttPlace {
  /** "bistable", or "bistable/PREFIX". */
  readonly root: string
  /** "channels/stable.json", "bundles/demo-1.7-0123456789ab.bundle". */
  readonly file: string
  readonly folder: Folder
}

/**
 * What an address `mqtt(s)://BROKER/[PREFIX/]FOLDER/NAME` names. Pure.
 * @returns undefined when it is not such an address
 */
export function placeOf(url: URL): MqttPlace | undefined {
  if (url.protocol !== 'mqtt:' && url.protocol !== 'mqtts:') return undefined
  if (url.hostname === '' || url.search !== '' || url.hash !== '') return undefined
  const path = url.pathname.slice(1)
  if (!isSafePath(path)) return undefined
  const parts = path.split('/')
  const folder = FOLDERS.find((name) => name === parts.at(-2))
  if (folder === undefined) return undefined
  return { root: ['bistable', ...parts.slice(0, -2)].join('/'), file: parts.slice(-2).join('/'), folder }
}

/** "bistable", or "bistable/PREFIX" for a broker's address `mqtt(s)://BROKER[/PREFIX]`; undefined when it is none. */
export function rootOf(url: URL): string | undefined {
  if (!/^mqtts?:$/.test(url.protocol) || url.hostname === '' || url.search !== '' || url.hash !== '') return undefined
  const path = url.pathname.replace(/^\/|\/$/g, '')
  if (path !== '' && !isSafePath(path)) return undefined
  return path === '' ? 'bistable' : `bistable/${path}`
}

/** Pieces of a bundle that lie in one segment. `bundle`: SHA-256 of the file; half of it tells bundles apart. */
export const piecesTopic = (root: string, bundle: string, segment: number): string =>
  `${root}/pieces/${bundle.slice(0, 32)}/${segment}`

/** What a device says and hears, below its own name. */
export type DeviceLeaf = 'ask' | 'answer' | 'link' | 'state' | 'progress'
export const deviceTopic = (root: string, device: string, leaf: DeviceLeaf): string =>
  `${root}/devices/${device}/${leaf}`

/** Which device's topic this is. Pure. @returns undefined for any other topic */
export function readDeviceTopic(root: string, topic: string): { device: string; leaf: string } | undefined {
  if (!topic.startsWith(`${root}/devices/`)) return undefined
  const [device, leaf, ...more] = topic.slice(`${root}/devices/`.length).split('/')
  if (device === undefined || leaf === undefined || more.length > 0 || !isDeviceName(device)) return undefined
  return { device, leaf }
}

/** Pieces of a file of `size` bytes. */
export const pieceCount = (size: number): number => Math.ceil(size / PIECE_BYTES)
/** Data bytes of one piece of a file of `size` bytes. */
export const pieceLength = (size: number, index: number): number => Math.min(PIECE_BYTES, size - index * PIECE_BYTES)
