//! Writes a zip file of stored entries with right checksums.

/// Returns a zip file. Names and contents must be small: there is no zip64 here.
pub fn write(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let offset = (file.len() as u32).to_le_bytes();
        let len = (bytes.len() as u32).to_le_bytes();
        // Version, flags, method, time and date, all of which may be zero but the version.
        let mut header = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        header.extend(crc32(bytes).to_le_bytes());
        header.extend(len);
        header.extend(len);
        header.extend((name.len() as u16).to_le_bytes());
        // No extra field.
        header.extend([0; 2]);
        file.extend(b"PK\x03\x04");
        file.extend(&header);
        file.extend(name.as_bytes());
        file.extend(*bytes);

        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&header);
        // No comment, first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(offset);
        directory.extend(name.as_bytes());
    }
    let start = (file.len() as u32).to_le_bytes();
    let len = (directory.len() as u32).to_le_bytes();
    let count = (entries.len() as u16).to_le_bytes();
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count);
    file.extend(count);
    file.extend(len);
    file.extend(start);
    file.extend([0; 2]);
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}
