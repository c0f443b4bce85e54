import { deviceTopic, isDeviceName, readDeviceTopic } from '../../broker/topics.ts'

/**
 * What a device may do on a broker. The embedded broker asks these; `mosquitto/acl` says the same for Mosquitto, and a
 * test asks both the same questions.
 */

/** Its own words, below its own name; never an answer, a statement or a piece. Pure. */
export function mayPublish(root: string, device: string, topic: string): boolean {
  const found = readDeviceTopic(root, topic)
  return found?.device === device && ['ask', 'link', 'state', 'progress'].includes(found.leaf)
}

/** What is published for all, and what is for this device; by plain topics, wildcards never. Pure. */
export function maySubscribe(root: string, device: string, topic: string): boolean {
  if (!isDeviceName(device) || /[+#]/.test(topic)) return false
  if (topic === deviceTopic(root, device, 'answer') || topic === `${root}/assignments/${device}.json`) return true
  const [folder, ...rest] = topic.startsWith(`${root}/`) ? topic.slice(root.length + 1).split('/') : []
  return (
    ((folder === 'channels' || folder === 'roots') && rest.length === 1) || (folder === 'pieces' && rest.length === 2)
  )
}
