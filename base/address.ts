/** True for what a device fetches from elsewhere, false for a path of its own. */
export const isAddress = (text: string): boolean => /^(https?|mqtts?):/i.test(text)
